"""`test_generation_models.py` as its readers run it, on tiny twins; and a child of transformers that cannot load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from server import ROOT

from sglang.srt.models.registry import FALLBACK_ARCH, ModelRegistry
from sglang.test.runners import HFRunner
from sglang.verify.media import family_of
from sglang.verify.tiny import write_tiny

FOLDER = ROOT / "test" / "registered" / "models"
sys.path.insert(0, str(FOLDER))

import test_generation_models as registered  # noqa: E402


def run(test: str, **env: str) -> subprocess.CompletedProcess[str]:
    """In the file's own folder, without a hub."""
    name = f"test_generation_models.TestGenerationModels.{test}"
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "python"), "HF_HUB_OFFLINE": "1", **env}
    return subprocess.run(
        [sys.executable, "-m", "unittest", name],
        cwd=FOLDER,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_ci_models() -> None:
    done = run("test_ci_models", SGLANG_IS_IN_CI="1", SGLANG_TEST_TWINS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "google/gemma-2-2b: a tiny random Gemma2ForCausalLM in its place" in done.stdout
    assert "skipped" not in done.stderr


def test_one_folder_whose_family_transformers_does_not_have(tmp_path: Path) -> None:
    """The prompts of the file are cut to what fits; a folder is never replaced."""
    folder = write_tiny("InternLM2ForCausalLM", tmp_path / "model")
    case = registered.chosen_cases(str(folder))[0]
    assert not registered.wants_twin(case)
    case.skip_long_prompt = True
    registered.compare(case, torch.float32, max_total_tokens=2048)


def test_every_architecture_has_a_case() -> None:
    """Other spellings of a name share a file and a case."""
    cases = {case.architecture for case in (*registered.CI_MODELS, *registered.ALL_MODELS)}
    files: dict[str, set[str]] = {}
    for entry in ModelRegistry.entries():
        if entry.architecture != FALLBACK_ARCH and family_of([entry.architecture]) is None:
            files.setdefault(entry.path.partition(":")[0], set()).add(entry.architecture)
    assert not [names for names in files.values() if not names & cases]
    assert not cases - set(ModelRegistry.models)


def test_only_run_finds_its_case() -> None:
    assert [c.tp_size for c in registered.chosen_cases("THUDM/glm-4-9b-chat")] == [2]
    assert [c.architecture for c in registered.chosen_cases("google/gemma-2-2b")] == [
        "Gemma2ForCausalLM"
    ]
    fresh = registered.chosen_cases("org/unknown")
    assert fresh == [registered.ModelCase("org/unknown")]
    assert len(registered.chosen_cases(None)) > 70


def test_a_child_that_cannot_load_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="transformers: ConfigError: .*does not exist"):
        HFRunner(str(tmp_path / "nothing"), torch.float32)
