"""Keeps what a run of the proofs found: `pytest test/models --record docs/supported_models/proof.json`.

Per tiny configuration: its architecture, how many forms were run and how many passed, their largest relative error, and that on several
ranks (more than the bound: failed).
Configurations that a run leaves out keep what the file says about them, so a record can be brought up to date one family at a time.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from sglang.verify.comparison import RELATIVE_BOUND
from sglang.verify.proof import FormResult

_KEY = "proof"


def note(request: pytest.FixtureRequest, case: str, architecture: str, result: FormResult) -> None:
    """Hand the result of one form to the record, if there is one."""
    _note(request, case, architecture, {"form": result.name, **_outcome([result])})


def note_ranks(
    request: pytest.FixtureRequest,
    case: str,
    architecture: str,
    size: int,
    results: list[FormResult],
) -> None:
    """Hand the results on `size` ranks to the record."""
    _note(request, case, architecture, {"ranks": size, **_outcome(results)})


class ProofRecord:
    """A pytest plug-in; with several workers it collects in the process that gathers their reports."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, list[dict[str, Any]]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            for key, value in report.user_properties:
                if key == _KEY:
                    self._found.setdefault(value["case"], []).append(value)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._found:
            old = json.loads(self._path.read_text()) if self._path.is_file() else {"cases": {}}
            cases = old["cases"]
            for name, rows in self._found.items():
                cases[name] = _row(rows, cases.get(name, {}))
            names = ("torch", "transformers")
            record = {
                "bound": RELATIVE_BOUND,
                "versions": {name: version(name) for name in names},
                "cases": dict(sorted(cases.items())),
            }
            self._path.write_text(json.dumps(record, indent=1) + "\n")


def _note(
    request: pytest.FixtureRequest, case: str, architecture: str, values: dict[str, Any]
) -> None:
    row = {"case": case, "architecture": architecture, **values}
    request.node.user_properties.append((_KEY, row))


def _outcome(results: list[FormResult]) -> dict[str, Any]:
    """The error is relative to the largest logit, or to one, as the bound is."""
    error = max(result.max_abs_diff / result.bound * RELATIVE_BOUND for result in results)
    return {"passed": all(result.passed for result in results), "error": error}


def _row(values: list[dict[str, Any]], old: dict[str, Any]) -> dict[str, Any]:
    """One configuration of the file. A run of forms only leaves the ranks as they are, and the other way round."""
    forms = {value["form"]: value for value in values if "form" in value}
    row = {"architecture": values[0]["architecture"], "forms": 0, "passed": 0, "ranks": {}, **old}
    if forms:
        row["forms"] = len(forms)
        row["passed"] = sum(value["passed"] for value in forms.values())
        row["max_error"] = _short(max(value["error"] for value in forms.values()))
    for value in values:
        if "ranks" in value:
            row["ranks"][str(value["ranks"])] = _short(value["error"])
    return row


def _short(error: float) -> float:
    return float(f"{error:.2g}")
