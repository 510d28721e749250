"""What a verification found: sections, and the report they make, in Markdown and as plain values for JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

_WORDS = {True: "pass", False: "**FAIL**", None: "skipped"}


@dataclasses.dataclass
class Section:
    """One step. `passed` None: it was not done, and the summary says why. `text` is Markdown, `data` plain values."""

    title: str
    passed: bool | None
    summary: str
    text: str = ""
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0


@dataclasses.dataclass
class Summary:
    """All sections of one model, in order."""

    model: str
    command: str
    versions: dict[str, str]
    sections: list[Section] = dataclasses.field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Something was proven and nothing failed."""
        outcomes = [section.passed for section in self.sections]
        return True in outcomes and False not in outcomes

    def markdown(self) -> str:
        """The report for people."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        outcome = "passed" if self.passed else "FAILED"
        lines = [
            f"# {self.model}: verification {outcome}",
            "",
            f"`{self.command}`",
            "",
            versions,
            "",
        ]
        lines += ["| step | result | seconds | found |", "|---|---|---|---|"]
        for s in self.sections:
            lines.append(
                f"| {s.title} | {_WORDS[s.passed]} | {s.seconds:.1f} | {cell(s.summary)} |"
            )
        for s in self.sections:
            if s.text:
                lines += ["", f"## {s.title}", "", s.text]
        return "\n".join(lines) + "\n"

    def plain(self) -> dict[str, Any]:
        """Values for JSON."""
        return {**dataclasses.asdict(self), "passed": self.passed}

    def write(self, folder: Path) -> None:
        """`report.md` and `report.json` in an existing folder."""
        (folder / "report.md").write_text(self.markdown(), encoding="utf-8")
        # Infinite differences are written as the string "Infinity", which every JSON reader takes.
        text = json.dumps(_finite(self.plain()), indent=2)
        (folder / "report.json").write_text(text + "\n", encoding="utf-8")


def cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return {"inf": "Infinity", "-inf": "-Infinity"}.get(str(value), "NaN")
    return value
