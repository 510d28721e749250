"""The tables of supported models say what is true: every architecture has a row, every row its class, file, configurations and record."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from models.configs import CASES
from models.configs_vlm import VLM_CASES

from sglang.srt.models.registry import FALLBACK_ARCH, ModelRegistry
from sglang.verify.tiny import require_reference, tiny_config

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

import generate_supported_models as tables  # noqa: E402

ROWS = [row for page in tables.PAGES for row in tables.table_rows(page.read_text())]
ENTRIES = [e for e in ModelRegistry.entries() if e.source.kind == "built-in"]
ARCHITECTURES = [e.architecture for e in ENTRIES if e.architecture != FALLBACK_ARCH]


def test_every_architecture_has_a_row_and_every_row_an_architecture() -> None:
    rows = {name for row in ROWS for name in row.architectures}
    without_row, without_file = set(ARCHITECTURES) - rows, rows - set(ARCHITECTURES)
    assert not without_row
    assert not without_file


def test_names_of_configurations_are_unique() -> None:
    """The record is kept by name."""
    assert not set(CASES) & set(VLM_CASES)


def test_rows_name_their_file_and_all_their_configurations() -> None:
    files = {e.architecture: e.path.partition(":")[0].rpartition(".")[2] for e in ENTRIES}
    cases: dict[str, set[str]] = {}
    for name, case in (*CASES.items(), *VLM_CASES.items()):
        if name not in _on_fallback():
            cases.setdefault(case.architecture, set()).add(name)
    written: dict[str, set[str]] = {}
    for row in ROWS:
        names, configurations = row.architectures, set(row.configurations)
        assert configurations, names
        assert {files[name] for name in names} == {row.file.stem}
        assert {_owner(name) for name in configurations} == set(names), row.configurations
        for name in names:
            written.setdefault(name, set()).update(configurations & cases.get(name, set()))
    assert {name: found for name, found in written.items() if found} == cases


def test_the_generated_columns_are_current() -> None:
    record = json.loads(tables.RECORD.read_text())
    for page in tables.PAGES:
        text = page.read_text()
        hint = f"{page.name} is out of date: run python scripts/generate_supported_models.py"
        assert tables.complete(text, record) == text, hint


def test_the_record_is_about_configurations_that_exist() -> None:
    record = json.loads(tables.RECORD.read_text())
    unknown = set(record["cases"]) - set(CASES) - set(VLM_CASES)
    assert not {name for name in unknown if not name.endswith("-on-fallback")}
    for name, case in record["cases"].items():
        assert case["passed"] == case["forms"], name
        errors = [case.get("max_error", 0.0), *case["ranks"].values()]
        assert max(errors) <= record["bound"], name


def test_models_on_the_fallback_are_named_on_its_page() -> None:
    page = tables.DOCS / "extending" / "transformers_fallback.md"
    text = page.read_text()
    assert not {name for name in _on_fallback() if f"`{name}`" not in text}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_a_tiny_configuration_and_a_reference(name: str) -> None:
    raw = tiny_config(name)
    assert raw["architectures"] == [name]
    if CASES_BY_ARCHITECTURE.get(name) is not None:
        require_reference(raw)


CASES_BY_ARCHITECTURE = {case.architecture: case for case in CASES.values()}


def test_old_columns_are_replaced_and_missing_ones_added() -> None:
    head = "| Family | Architecture | File | Features | Tiny configurations |"
    row = "| Llama | `LlamaForCausalLM` | `llama.py` | all | `llama` |"
    case = {
        "architecture": "LlamaForCausalLM",
        "forms": 28,
        "passed": 27,
        "max_error": 2e-6,
        "ranks": {"2": 1e-6, "4": 1.0},
    }
    record = {"bound": 1e-4, "versions": {"torch": "2"}, "cases": {"llama": case}}
    once = tables.complete(
        f"Last recorded with x\n\n{head}\n|---|---|---|---|---|\n{row}\n", record
    )
    assert once.splitlines()[0] == "Last recorded with torch 2."
    assert once.splitlines()[-1].endswith("| **27** of 28 | 1 = 2 = **not 4** | 2.0e-06 |")
    assert tables.complete(once, record) == once
    empty = tables.complete(once, {"bound": 1e-4, "cases": {}})
    assert empty.count("not recorded") == 3


def test_lines_of_code_leave_out_what_only_people_read(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        '"""Doc\nstring."""\n\n# comment\nx = [\n    1,  # one\n]\n\n\ndef f():\n    """d"""\n    return x\n'
    )
    assert tables.code_lines(path) == 5


def _owner(configuration: str) -> str:
    """The architecture of a case, or of a stored configuration with a test of its own, as `sglang new-model` writes it."""
    case = CASES.get(configuration) or VLM_CASES.get(configuration)
    if case is not None:
        return case.architecture
    assert (ROOT / "test" / "models" / f"test_{configuration}.py").is_file(), configuration
    return tiny_config(configuration)["architectures"][0]


def _on_fallback() -> set[str]:
    return {name for name, case in CASES.items() if case.is_fallback}
