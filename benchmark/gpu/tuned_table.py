"""Writing what was measured on a card into the module of the package that holds it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any


def write_table(module: ModuleType, table: dict[Any, dict[int, Any]]) -> None:
    """Replace the entries of `TUNED`, the last thing in the file of `module`, by those of `table`, in the order of their keys."""
    assert module.__file__ is not None
    path = Path(module.__file__)
    head, opening, _ = path.read_text().partition("] = {")
    lines = [head + opening]
    for key in sorted(table):
        lines.append(f"    {key}: {{")
        lines += [f"        {count}: {table[key][count]}," for count in sorted(table[key])]
        lines.append("    },")
    path.write_text("\n".join([*lines, "}"]) + "\n")
