"""Whether what an engine said is what transformers says.

    float32    every token is a most likely one, logprobs of prompt and output within 1e-4 of the largest logit: the bound of `sglang.verify`
    bfloat16   errors of logprobs, their mean and the largest, at most twice those of transformers in bfloat16 for the same texts

Rounding can send a token to another expert, which changes a place or two by much: of models with experts the largest error may be twice as large again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from proof_references import Prompt, References

from sglang.verify.comparison import RELATIVE_BOUND, bound_of

RATIO = 2.0
RATIO_OF_LARGEST_WITH_EXPERTS = 4.0
# Smaller errors are never too large: the mean, and the largest.
FLOORS = (0.003, 0.02)


@dataclasses.dataclass(frozen=True)
class Said:
    """An engine's answer: the output's ids with their logprobs, and logprobs of the prompt's tokens by position (empty: not asked)."""

    prompt: Prompt
    output_ids: list[int]
    output_logprobs: list[float]
    prompt_logprobs: dict[int, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`words` are the errors beside what is allowed, for a line of a table."""

    is_right: bool
    words: str


def judge(
    said: Sequence[Said],
    references: References,
    dtype: str,
    num_tokens: int,
    has_experts: bool = False,
) -> Verdict:
    """Compares all answers of an engine, each of which should have `num_tokens` tokens."""
    if any(len(item.output_ids) != num_tokens for item in said):
        lengths = [len(item.output_ids) for item in said]
        return Verdict(False, f"outputs of {lengths} tokens instead of {num_tokens}")
    if dtype == "float32":
        return _judge_float32(said, references)
    return _judge_bfloat16(said, references, has_experts)


def _judge_float32(said: Sequence[Said], references: References) -> Verdict:
    worst, num_equal = 0.0, 0
    for item in said:
        exact = references.exact(item.prompt, item.output_ids)
        behind = exact.behind[len(item.prompt.ids) - 1 :]
        num_equal += bool((behind <= bound_of(exact.scale)).all())
        places, ours = _places(item)
        error = _largest(ours - exact.logprobs[places])
        worst = max(worst, error / max(1.0, exact.scale))
    is_right = num_equal == len(said) and worst <= RELATIVE_BOUND
    return Verdict(is_right, f"equal {num_equal}/{len(said)}, error {worst:.1e}")


def _judge_bfloat16(said: Sequence[Said], references: References, has_experts: bool) -> Verdict:
    ours, theirs, behind = [], [], 0.0
    for item in said:
        exact = references.exact(item.prompt, item.output_ids)
        rounded = references.rounded(item.prompt, item.output_ids)
        places, values = _places(item)
        ours.append(values - exact.logprobs[places])
        theirs.append(rounded.logprobs[places] - exact.logprobs[places])
        behind = max(behind, float(exact.behind[len(item.prompt.ids) - 1 :].max()))
    mine, other = torch.cat(ours), torch.cat(theirs)
    sizes = (_mean(mine), _largest(mine))
    limits = (_mean(other), _largest(other))
    ratios = [
        size / max(limit, floor) for size, limit, floor in zip(sizes, limits, FLOORS, strict=True)
    ]
    allowed = RATIO_OF_LARGEST_WITH_EXPERTS if has_experts else RATIO
    # A token is chosen whose logit is as large as the best one's within the errors of both.
    is_chosen = behind <= 2 * allowed * max(limits[1], FLOORS[1])
    is_right = ratios[0] <= RATIO and ratios[1] <= allowed and is_chosen
    words = f"error {sizes[0]:.1e} (x{ratios[0]:.2f}), worst {sizes[1]:.1e} (x{ratios[1]:.2f})"
    return Verdict(is_right, words if is_chosen else f"{words}, chose a token {behind:.2f} behind")


def _places(item: Said) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the scores, and what the engine said of them."""
    start = len(item.prompt.ids) - 1
    values = {position - 1: value for position, value in item.prompt_logprobs.items()}
    values |= {start + i: value for i, value in enumerate(item.output_logprobs)}
    return torch.tensor(list(values)), torch.tensor(list(values.values()), dtype=torch.float32)


def _mean(errors: torch.Tensor) -> float:
    return _number(errors.abs().mean())


def _largest(errors: torch.Tensor) -> float:
    return _number(errors.abs().max())


def _number(value: torch.Tensor) -> float:
    """What is no number is larger than everything."""
    found = float(value)
    return math.inf if math.isnan(found) else found
