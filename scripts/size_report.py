"""How big the code is: lines per folder, biggest files, longest functions, import closures, flags, environment variables.

    python scripts/size_report.py [--top 10] [--json OUT.json] [--against OLD.json]

It informs; people decide.
"""

from __future__ import annotations

import argparse
import ast
import collections
import json
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "python"
PACKAGE = SOURCE / "sglang"
FOLDERS = ("python", "test", "scripts", "benchmark")
# What an author of a model, a user of the server and a scheduler process load of ours.
CLOSURES = (
    "sglang.srt.models.llama",
    "sglang.launch_server",
    "sglang.srt.entrypoints.engine",
    "sglang.srt.managers.scheduler_builder",
    "sglang.bench_serving",
)


class Function(NamedTuple):
    lines: int
    where: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--top", type=int, default=10, help="length of the lists")
    parser.add_argument("--json", type=Path, help="write the totals, for --against")
    parser.add_argument("--against", type=Path, help="show the change since these totals")
    args = parser.parse_args()
    totals = collect_totals()
    old = json.loads(args.against.read_text(encoding="utf-8")) if args.against else {}
    for title, names in groups(totals).items():
        print(f"\n{title}")
        for name in names:
            print(f"  {totals[name]:>7} {_change(totals[name], old, name):<8} {name}")
    _print_lists(args.top)
    if args.json:
        args.json.write_text(json.dumps(totals, indent=1) + "\n", encoding="utf-8")


def collect_totals() -> dict[str, int]:
    """Name of a total -> number."""
    totals: dict[str, int] = {}
    for folder, count in folder_lines().items():
        totals[f"lines {folder}"] = count
    for module in CLOSURES:
        members = closure(module)
        totals[f"closure modules {module}"] = len(members)
        totals[f"closure lines {module}"] = sum(count_lines(modules()[name]) for name in members)
    return totals | count_settings()


def groups(totals: dict[str, int]) -> dict[str, list[str]]:
    """Titles and the totals below them."""
    titles = {"lines": "Lines", "closure": "Import closures", "number": "Settings"}
    return {
        title: [name for name in totals if name.split()[0] == word]
        for word, title in titles.items()
    }


def folder_lines() -> dict[str, int]:
    """Lines of Python per folder, two levels below `sglang/srt`."""
    counts: collections.Counter[str] = collections.Counter()
    for path in python_files():
        parts = path.relative_to(ROOT).parts[:-1]
        depth = 4 if parts[:3] == ("python", "sglang", "srt") else 2
        counts["/".join(parts[:depth])] += count_lines(path)
        counts[f"{parts[0]} (all)"] += count_lines(path)
    return dict(sorted(counts.items()))


def longest_functions() -> list[Function]:
    """All functions of the package, longest first."""
    found = []
    for path in modules().values():
        for node in ast.walk(parse(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                found.append(
                    Function(lines, f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}")
                )
    return sorted(found, reverse=True)


def closure(module: str) -> set[str]:
    """Our modules that importing `module` runs, parents included."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in modules() and name not in seen:
            seen.add(name)
            todo += imports(modules()[name])
            todo.append(name.rpartition(".")[0])
    return seen


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports when it is loaded."""
    names: set[str] = set()
    for node in _loaded_nodes(parse(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names & modules().keys()


def count_settings() -> dict[str, int]:
    """Flags of the server and environment variables; both modules are light."""
    sys.path.insert(0, str(SOURCE))
    from sglang.srt.arg_groups.fields import flag_specs
    from sglang.srt.environ import EnvField, envs
    from sglang.srt.server_args import ServerArgs

    variables = [name for name, value in vars(type(envs)).items() if isinstance(value, EnvField)]
    return {
        "number of flags": len(flag_specs(ServerArgs)),
        "number of environment variables": len(variables),
    }


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def python_files() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


@cache
def count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _loaded_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if not is_typing and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node
            yield from _loaded_nodes(node)


def _print_lists(top: int) -> None:
    print("\nBiggest files")
    for path in sorted(python_files(), key=count_lines, reverse=True)[:top]:
        print(f"  {count_lines(path):>7} {os.path.relpath(path, ROOT)}")
    print("\nLongest functions")
    for function in longest_functions()[:top]:
        print(f"  {function.lines:>7} {function.where}")


def _change(value: int, old: dict[str, int], name: str) -> str:
    if not old or value == old.get(name):
        return ""
    return f"({value - old[name]:+d})" if name in old else "(new)"


if __name__ == "__main__":
    main()
