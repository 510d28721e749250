"""What the report says about a difference: a likely cause, epsilons of norms, where an error came from, how much of it fits a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.models.llama import LlamaForCausalLM
from sglang.srt.models.registry import ModelRegistry
from sglang.srt.utils.errors import ConfigError
from sglang.verify.causes import likely_cause
from sglang.verify.command import describe_error
from sglang.verify.comparison import Difference, compare_trace
from sglang.verify.coverage import Coverage, measure_coverage
from sglang.verify.diverge import trace_modules
from sglang.verify.forms import Ask, Form
from sglang.verify.pairing import (
    ATTENTION,
    INPUT,
    LOGITS,
    OUTPUT,
    RESIDUAL,
    SCORES,
    Site,
    SiteError,
)
from sglang.verify.proof import FormResult, Proof
from sglang.verify.reference import Continuation
from sglang.verify.sections import brief, module_section, ranks_section
from sglang.verify.subject import Trace

WHOLE = Form("one prompt", (Ask("short", num_tokens=3),))


def site_error(part: str, first: int, is_block: bool = False) -> SiteError:
    errors = torch.zeros(4)
    errors[first:] = 1.0
    products = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    columns = torch.zeros(4, dtype=torch.long)
    site = Site("ours", "theirs", part, is_block=is_block)
    return SiteError(site, 0, 1.0, errors, columns, products)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (site_error(SCORES, 0), "norms of q and k"),
        (site_error(SCORES, 1), "theta"),
        (site_error(ATTENTION, 0), "values"),
        (site_error(ATTENTION, 3), "tokens before 3 agree: look at the window"),
        (site_error(INPUT, 0), "activation"),
        (site_error(OUTPUT, 0), "transposed"),
        (site_error(OUTPUT, 0, is_block=True), "added and scaled"),
        (site_error(RESIDUAL, 0), "the branch before it"),
        (site_error(LOGITS, 0), "the head"),
    ],
)
def test_every_part_has_a_cause(error: SiteError, words: str) -> None:
    assert words in likely_cause(error)


def test_a_difference_from_the_first_medium_on_is_the_towers() -> None:
    at_medium, before = site_error(OUTPUT, 2), site_error(OUTPUT, 1)
    assert "look at the tower" in likely_cause(at_medium, 2)
    assert "look at the tower" not in likely_cause(before, 2) + likely_cause(at_medium)
    assert "look at the window" in likely_cause(site_error(ATTENTION, 2), 2)


def test_a_refused_request_says_why() -> None:
    found = Difference()
    trace = Trace(prompt_ids=[1], finish_reason="abort", finish_message="17 rows for 16 places")
    compare_trace("a", trace, Continuation((1,), (2,), torch.zeros(1, 4)), found)
    assert "'abort' instead of its length (17 rows for 16 places)" in found.problems[0]


@pytest.mark.parametrize(("scaling", "is_constant"), [(0.5, True), (0.25, False)])
def test_a_constant_factor_is_told(
    proof: Proof,
    coverage: Coverage,
    monkeypatch: pytest.MonkeyPatch,
    scaling: float,
    is_constant: bool,
) -> None:
    """Scores of the tiny Llama are scaled by a quarter: twice that is a factor, a wrong weight is none."""
    model = proof.subject(1).model
    monkeypatch.setattr(model.get_submodule("model.layers.0.self_attn.attn"), "scaling", scaling)
    weight = model.get_parameter("model.layers.1.self_attn.o_proj.weight")
    before = weight.detach().clone()
    with torch.no_grad():
        weight.copy_(before.T)
    first = trace_modules(proof, WHOLE, coverage.placements).first
    with torch.no_grad():
        weight.copy_(before)
    assert first is not None
    assert ("every value is 2 times" in likely_cause(first)) is is_constant
    assert ("transposed" in likely_cause(first)) is not is_constant


def test_an_epsilon_that_makes_no_difference_in_the_numbers_fails(
    proof: Proof, coverage: Coverage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The residual stream behind the layers is large, so that the last norm's epsilon is lost in rounding."""
    norm: Any = proof.subject(1).model.get_submodule("model.norm")
    right = norm.variance_epsilon
    assert module_section(trace_modules(proof, WHOLE, coverage.placements), []).passed
    monkeypatch.setattr(norm, "variance_epsilon", right * 1.5)
    found = trace_modules(proof, WHOLE, coverage.placements)
    section = module_section(found, [])
    assert found.first is None and section.passed is False
    assert f"model.norm has epsilon {right * 1.5:g}" in section.summary


def test_a_tensor_without_a_place_and_the_parameter_without_a_tensor_are_told_together(
    monkeypatch: pytest.MonkeyPatch, llama: Path
) -> None:
    class Renamed(LlamaForCausalLM):
        def load_weights(self, weights: Any) -> set[str]:
            return super().load_weights((n.replace(".up_proj.", ".wide."), t) for n, t in weights)

    monkeypatch.setitem(ModelRegistry.models, "LlamaForCausalLM", Renamed)
    with pytest.raises(ConfigError) as caught:
        measure_coverage(str(llama), ModelConfig(str(llama), dtype="float32"))
    message = str(caught.value)
    assert "layers.0.mlp.wide.weight belongs to no parameter; the same in 1 other places" in message
    assert "shard 1 of parameter model.layers.0.mlp.gate_up_proj.weight" in message


def test_an_error_of_a_model_file_says_where() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2) @ torch.zeros(3)
    assert "(in test_causes.py, line " in describe_error(caught.value)
    assert describe_error(ConfigError("set --tp 1")) == "set --tp 1"


def test_a_line_has_the_first_findings() -> None:
    assert brief("a; b") == "a; b"
    assert brief("a; b; c; d") == "a; b; ..."


def test_ranks_are_blamed_only_when_one_rank_is_right() -> None:
    result = FormResult("form", False, 1.0, 0.1, "differs")
    assert "a sum over ranks" in ranks_section([2], [result], is_right_alone=True).summary
    assert ranks_section([2], [result], is_right_alone=False).summary == "form: differs"
