"""Complete the tables of supported models: lines of code, proven forms, ranks and errors behind what people wrote. `--check` only compares.

Families, features and names of tiny configurations are written by hand; the rest comes from the model files and from the record of
the last proof run, `docs/supported_models/proof.json` (`pytest test/models --record docs/supported_models/proof.json`).
"""

from __future__ import annotations

import ast
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs" / "supported_models"
RECORD = DOCS / "proof.json"
PAGES = (
    DOCS / "text_generation" / "generative_models.md",
    DOCS / "text_generation" / "multimodal_language_models.md",
)
MODELS = ROOT / "python" / "sglang" / "srt" / "models"
GENERATED = ("Lines", "Forms", "Ranks", "Largest error")
_STAMP = "Last recorded with "
_UNKNOWN = "not recorded"
_LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)


@dataclass(frozen=True)
class Row:
    """A row of a table; `cells` are those that people wrote, by the names of their columns."""

    cells: dict[str, str]

    @property
    def architectures(self) -> list[str]:
        return re.findall(r"`(\w+)`", self.cells["Architecture"])

    @property
    def file(self) -> Path:
        return MODELS / self.cells["File"].strip("` ")

    @property
    def configurations(self) -> list[str]:
        return re.findall(r"`([^`]+)`", self.cells["Tiny configurations"])


def main() -> int:
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {"cases": {}}
    is_current = True
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = complete(old, record)
        is_current = is_current and new == old
        if "--check" not in sys.argv[1:]:
            page.write_text(new, encoding="utf-8")
            print(f"wrote {page}")
    if "--check" in sys.argv[1:]:
        print("the tables are current" if is_current else "the tables are out of date")
        return 0 if is_current else 1
    return 0


def complete(text: str, record: dict[str, Any]) -> str:
    """The page with the generated columns; a row may lack them, or have old ones."""
    lines: list[str] = []
    columns: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            columns = []
            lines.append(_stamp(record) if line.startswith(_STAMP) else line)
            continue
        cells = _cells(line)
        if not columns:
            columns = [name for name in cells if name not in GENERATED]
            more = list(GENERATED)
        elif set(line) <= set("|-: "):
            more = ["---"] * len(GENERATED)
        else:
            more = _facts(Row(dict(zip(columns, cells, strict=False))), record)
        kept = cells[: len(columns)]
        if "Architecture" not in columns:
            lines.append(line)
        elif set(line) <= set("|-: "):
            lines.append("|---" * (len(columns) + len(GENERATED)) + "|")
        else:
            lines.append(f"| {' | '.join([*kept, *more])} |")
    return "\n".join(lines) + "\n"


def table_rows(text: str) -> Iterator[Row]:
    """The rows of a page's tables that have a column Architecture."""
    columns: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            columns = []
        elif not columns:
            columns = _cells(line)
        elif "Architecture" in columns and not set(line) <= set("|-: "):
            yield Row(dict(zip(columns, _cells(line), strict=False)))


def code_lines(path: Path) -> int:
    """Lines with code on them: neither blank nor comment nor docstring."""
    text = path.read_text(encoding="utf-8")
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _LAYOUT:
            found.update(range(token.start[0], token.end[0] + 1))
    found.discard(text.count("\n") + 1)  # the end marker
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                found -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(found)


def _facts(row: Row, record: dict[str, Any]) -> list[str]:
    """The generated cells."""
    cases = record["cases"]
    lines = str(code_lines(row.file)) if row.file.is_file() else "no such file"
    ranks = _ranks(row, record)
    if any(not cases.get(name, {}).get("forms") for name in row.configurations):
        return [lines, _UNKNOWN, ranks, _UNKNOWN]
    own = [cases[name] for name in row.configurations]
    passed, forms = (sum(case[key] for case in own) for key in ("passed", "forms"))
    error = max(case["max_error"] for case in own)
    counts = f"{passed} of {forms}" if passed == forms else f"**{passed}** of {forms}"
    return [lines, counts, ranks, f"{error:.1e}"]


def _ranks(row: Row, record: dict[str, Any]) -> str:
    """`1 = 2 = 4` as far as one configuration of each architecture of the row was compared."""
    sizes: dict[str, float] = {}
    for case in record["cases"].values():
        if case["architecture"] in row.architectures:
            for size, error in case["ranks"].items():
                sizes[size] = max(error, sizes.get(size, 0.0))
    if not sizes:
        return _UNKNOWN
    parts = [
        size if sizes[size] <= record["bound"] else f"**not {size}**" for size in sorted(sizes)
    ]
    return " = ".join(["1", *parts])


def _stamp(record: dict[str, Any]) -> str:
    versions = record.get("versions", {})
    names = " and ".join(f"{name} {version}" for name, version in versions.items())
    return f"{_STAMP}{names or 'nothing yet'}."


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


if __name__ == "__main__":
    sys.exit(main())
