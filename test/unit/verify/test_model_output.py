"""Comparison of two runs: what is close enough, and what each kind of difference says."""

from __future__ import annotations

import dataclasses
import unittest

import pytest

from sglang.srt.utils.errors import ConfigError
from sglang.test.model_output import ModelOutput, check_close_model_outputs
from sglang.test.runners import HFRunner, SRTRunner, get_dtype_str
from sglang.test.test_utils import (
    CustomTestCase,
    calculate_rouge_l,
    get_similarities,
    is_in_ci,
)

ROWS = [[-0.5, -1.0, -2.0, -3.0, -4.0], [-0.25, -1.5, -2.5, -3.5, -4.5]]
OUTPUT = ModelOutput(output_strs=["a b c"], top_input_logprobs=[ROWS], top_output_logprobs=[ROWS])


def moved(by: float) -> list[list[list[float]]]:
    return [[ROWS[0], [value + by for value in ROWS[1]]]]


def check(other: ModelOutput, rouge_l: float = 1.0) -> None:
    check_close_model_outputs(OUTPUT, other, 5e-2, 6e-2, rouge_l, "case: ")


def test_what_is_close_passes() -> None:
    check(OUTPUT)
    near = dataclasses.replace(
        OUTPUT, top_input_logprobs=moved(0.04), top_output_logprobs=moved(0.05)
    )
    check(near)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"output_strs": ["a b d"]}, "case: prompt 0: ROUGE-L"),
        ({"top_input_logprobs": moved(0.055)}, "prefill logprobs differ"),
        ({"top_output_logprobs": moved(0.065)}, "decode logprobs differ"),
        ({"top_output_logprobs": [ROWS[:1]]}, "decode logprobs of 2 and of 1 positions"),
    ],
)
def test_what_differs_is_named(change: dict, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check(dataclasses.replace(OUTPUT, **change))


def test_logprobs_behind_long_prompts_are_not_compared() -> None:
    long = dataclasses.replace(OUTPUT, top_input_logprobs=[ROWS * 51])
    other = dataclasses.replace(long, top_output_logprobs=moved(9.0))
    check_close_model_outputs(long, other, 5e-2, 6e-2, 1.0)


def test_nothing_generated_is_no_success() -> None:
    empty = ModelOutput(output_strs=[], top_input_logprobs=[], top_output_logprobs=[])
    with pytest.raises(AssertionError, match="nothing was generated"):
        check_close_model_outputs(empty, empty, 1.0, 1.0, 1.0)


def test_rouge_l_is_the_longest_common_subsequence() -> None:
    assert calculate_rouge_l(["", "abc", "abcd"], ["", "abc", "axcy"]) == [1.0, 1.0, 0.5]
    assert calculate_rouge_l(["ab"], ["cd"]) == [0.0]
    with pytest.raises(ValueError):
        calculate_rouge_l(["a"], [])


def test_similarities_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_similarities([1.0, 0.0], [2.0, 0.0]).item() == pytest.approx(1.0)
    assert get_similarities([1.0, 0.0], [0.0, 3.0]).item() == pytest.approx(0.0)
    monkeypatch.setenv("SGLANG_IS_IN_CI", "true")
    assert is_in_ci()
    monkeypatch.delenv("SGLANG_IS_IN_CI")
    assert not is_in_ci()
    monkeypatch.setenv("SGLANG_IS_IN_CI", "perhaps")
    with pytest.raises(ConfigError, match="SGLANG_IS_IN_CI='perhaps'"):
        is_in_ci()


@pytest.mark.parametrize(
    ("name", "retries", "runs", "passes"),
    [
        ("test_that_passes_the_third_time", None, 1, False),
        ("test_that_passes_the_third_time", "1", 2, False),
        ("test_that_passes_the_third_time", "5", 3, True),
        ("test_that_is_skipped", "5", 1, True),
    ],
)
def test_failed_tests_run_again_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, name: str, retries: str | None, runs: int, passes: bool
) -> None:
    monkeypatch.delenv("SGLANG_TEST_MAX_RETRY", raising=False)
    if retries is not None:
        monkeypatch.setenv("SGLANG_TEST_MAX_RETRY", retries)
    done: list[str] = []

    class Flaky(CustomTestCase):  # not for pytest to collect
        def test_that_passes_the_third_time(self) -> None:
            done.append("run")
            assert len(done) > 2

        def test_that_is_skipped(self) -> None:
            done.append("run")
            self.skipTest("not here")

    result = unittest.TestResult()
    Flaky(name).run(result)
    assert (len(done), result.wasSuccessful()) == (runs, passes)
    assert len(result.skipped) == (name == "test_that_is_skipped")


def test_what_is_not_there_is_refused() -> None:
    import torch

    assert get_dtype_str(torch.float16) == "float16"
    for runner in (HFRunner, SRTRunner):
        with pytest.raises(ConfigError, match="model_type='poetry'.*generation, embedding"):
            runner("x", torch.float32, model_type="poetry")
    with pytest.raises(ConfigError, match="is_embedding|is-embedding"):
        SRTRunner("x", torch.float32, model_type="embedding")
    with pytest.raises(ConfigError, match="enable_lora|enable-lora"):
        SRTRunner("x", torch.float32, enable_lora=True)
