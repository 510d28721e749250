"""What an author reads when a checkpoint does not fit, or when nothing serves it."""

from __future__ import annotations

from sglang.srt.models.common.weight_problems import WeightLoadError, WeightProblem
from sglang.srt.models.registry import unsupported_message


def test_problems_of_one_kind_take_one_line() -> None:
    """A mistake that every layer repeats must not push another one out of the message."""
    problems = [
        WeightProblem(f"tensor layers.{i}.a.weight belongs to no parameter (in {i}.safetensors)")
        for i in range(60)
    ]
    error = WeightLoadError([*problems, WeightProblem("parameter b is filled by no tensor")])
    lines = str(error).splitlines()
    assert "(61 problems)" in lines[0] and len(lines) == 4
    assert lines[1].endswith("(in 0.safetensors); the same in 59 other places")
    assert lines[2].endswith("parameter b is filled by no tensor")
    assert error.problems[:60] == problems


def test_a_misspelt_architecture_gets_a_hint() -> None:
    message = unsupported_message(["LlamaForCausalLm"])
    assert "Did you mean LlamaForCausalLM" in message and "docs/add_a_model.md" in message
    assert "Did you mean" not in unsupported_message(["SomethingElse"])
