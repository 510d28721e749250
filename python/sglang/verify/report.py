"""Results as a table for people and as plain values for files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from sglang.verify.proof import FormResult


def markdown_table(results: Sequence[FormResult]) -> str:
    """One line per form, and a last line that says how many passed."""
    lines = [
        "| form | result | largest difference | bound | detail |",
        "|---|---|---|---|---|",
    ]
    for r in results:
        outcome = "pass" if r.passed else "**FAIL**"
        detail = r.detail.replace("|", "\\|")
        lines.append(f"| {r.name} | {outcome} | {r.max_abs_diff:.2e} | {r.bound:.2e} | {detail} |")
    passed = sum(r.passed for r in results)
    return "\n".join([*lines, "", f"{passed} of {len(results)} forms passed"])


def to_dict(results: Sequence[FormResult]) -> dict[str, Any]:
    """Plain values, ready for JSON (an infinite difference becomes the string "inf")."""
    return {
        "passed": bool(results) and all(r.passed for r in results),
        "forms": [_plain(r) for r in results],
    }


def _plain(result: FormResult) -> dict[str, Any]:
    values = dataclasses.asdict(result)
    for name in ("max_abs_diff", "bound"):
        if values[name] == float("inf"):
            values[name] = "inf"
    return values
