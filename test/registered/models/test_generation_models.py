"""Greedy texts and logprobs of published checkpoints, here and in transformers, with `HFRunner` and `SRTRunner`.

    cd test/registered/models
    ONLY_RUN=Qwen/Qwen2-1.5B python3 -m unittest test_generation_models.TestGenerationModels.test_others
    ONLY_RUN=path/to/a/folder python3 -m unittest test_generation_models.TestGenerationModels.test_others
    SGLANG_IS_IN_CI=1 python3 -m unittest test_generation_models.TestGenerationModels.test_ci_models

ONLY_RUN takes one model, in the list or not; without it every case of `model_cases` runs. On a machine without a GPU, or where the hub
does not answer, a case runs on its tiny twin: the architecture with random weights, in float32 and within 1e-3.
SGLANG_TEST_TWINS=1 asks for twins, SGLANG_TEST_TWINS=0 for the checkpoints.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
import tempfile
import unittest
from pathlib import Path

import torch

# Beside this file, which is run from its own folder and by pytest from elsewhere.
sys.path.insert(0, str(Path(__file__).parent))

from model_cases import ALL_MODELS, ALL_OTHER_MODELS, CI_MODELS, ModelCase

from sglang.srt.environ import envs
from sglang.srt.utils.errors import ConfigError
from sglang.srt.utils.hf_transformers_utils import read_config_dict
from sglang.test.runners import DEFAULT_PROMPTS, HFRunner, SRTRunner, check_close_model_outputs
from sglang.test.test_utils import CustomTestCase, is_in_ci
from sglang.verify.tiny import write_tiny

__all__ = ["ALL_MODELS", "ALL_OTHER_MODELS", "CI_MODELS", "ModelCase", "TestGenerationModels"]

TORCH_DTYPES = [torch.float16]
MAX_NEW_TOKENS = 32
_LONG_PROMPT = 1000  # characters
# Of twins, in float32.
_TWIN_TOLERANCE = 1e-3
_TWIN_RANKS = 2


class TestGenerationModels(CustomTestCase):
    """`test_ci_models` is for continuous integration, `test_others` for everywhere else."""

    @classmethod
    def setUpClass(cls) -> None:
        multiprocessing.set_start_method("spawn", force=True)

    @unittest.skipUnless(is_in_ci(), "runs where SGLANG_IS_IN_CI=1; elsewhere test_others does")
    def test_ci_models(self) -> None:
        for case in CI_MODELS:
            self._compare(case)

    @unittest.skipIf(is_in_ci(), "runs everywhere but where SGLANG_IS_IN_CI=1")
    def test_others(self) -> None:
        for case in chosen_cases(envs.ONLY_RUN.get()):
            self._compare(case)

    def _compare(self, case: ModelCase) -> None:
        with self.subTest(case.model_path), tempfile.TemporaryDirectory() as folder:
            if wants_twin(case):
                case = twin_of(case, folder)
                compare(case, torch.float32, max_total_tokens=2048)
                return
            for dtype in TORCH_DTYPES:
                compare(case, dtype)


def chosen_cases(only_run: str | None) -> list[ModelCase]:
    """Every case; with `only_run` those of that model, or a fresh one when it is not in the lists."""
    if not only_run:
        return ALL_OTHER_MODELS
    known = [case for case in (*ALL_OTHER_MODELS, *CI_MODELS) if case.model_path == only_run]
    return known or [ModelCase(only_run)]


def wants_twin(case: ModelCase) -> bool:
    """Whether a case runs on random weights. A folder is always run itself."""
    choice = envs.SGLANG_TEST_TWINS.get()
    if choice not in ("auto", "0", "1"):
        raise ConfigError(f"SGLANG_TEST_TWINS={choice!r}; allowed: auto, 0, 1")
    if not case.architecture or choice == "0":
        return False
    return choice == "1" or not torch.cuda.is_available() or not _can_be_fetched(case.model_path)


def twin_of(case: ModelCase, folder: str) -> ModelCase:
    """The case on a tiny checkpoint written into `folder`; prompts have to be short for it."""
    print(f"{case.model_path}: a tiny random {case.architecture} in its place", flush=True)
    write_tiny(case.architecture, folder)
    return dataclasses.replace(
        case,
        model_path=folder,
        tp_size=min(case.tp_size, _TWIN_RANKS),
        prefill_tolerance=_TWIN_TOLERANCE,
        decode_tolerance=_TWIN_TOLERANCE,
        skip_long_prompt=True,
    )


def compare(case: ModelCase, dtype: torch.dtype, max_total_tokens: int | None = None) -> None:
    """Raises AssertionError where the two differ by more than the case allows."""
    prompts = [
        prompt
        for prompt in DEFAULT_PROMPTS
        if not case.skip_long_prompt or len(prompt) < _LONG_PROMPT
    ]
    trust = case.trust_remote_code
    with HFRunner(case.model_path, torch_dtype=dtype, trust_remote_code=trust) as hf_runner:
        hf_outputs = hf_runner.forward(prompts, max_new_tokens=MAX_NEW_TOKENS)
    with SRTRunner(
        case.model_path,
        torch_dtype=dtype,
        tp_size=case.tp_size,
        trust_remote_code=trust,
        attention_backend=case.attention_backend,
        max_total_tokens=max_total_tokens,
    ) as srt_runner:
        srt_outputs = srt_runner.forward(prompts, max_new_tokens=MAX_NEW_TOKENS)
    check_close_model_outputs(
        hf_outputs,
        srt_outputs,
        prefill_tolerance=case.prefill_tolerance,
        decode_tolerance=case.decode_tolerance,
        rouge_l_tolerance=case.rouge_l_tolerance,
        debug_text=f"{case.model_path}, {dtype}, tp {case.tp_size}: ",
    )


def _can_be_fetched(model_path: str) -> bool:
    """Whether the folder exists or the hub gives out its config.json."""
    try:
        read_config_dict(model_path)
    except ConfigError:
        return False
    return True


if __name__ == "__main__":
    unittest.main()
