"""What one run of prompts gave, in the form in which two runs are compared, and the comparison."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from sglang.test.test_utils import calculate_rouge_l

# Of every position the most likely tokens are compared.
NUM_TOP_LOGPROBS = 5
# Behind longer prompts rounding decides too often.
_MAX_COMPARED_PROMPT = 100


@dataclasses.dataclass
class ModelOutput:
    """Lists by prompt. `[p][i]` of a top list are the logprobs, best first, of what follows token i; prompts and outputs apart.

    The lists of `input_token_logprobs_lst` and `output_token_logprobs_lst` hold `(logprob, token id, text)`. The `token_ids_` lists are
    about the ids that were asked for. `embed_logits` are vectors of an embedding model, `scores` numbers of a reward model.
    """

    output_strs: list[str] | None = None
    output_ids: list[list[int]] | None = None
    top_input_logprobs: list[Any] | None = None
    top_output_logprobs: list[Any] | None = None
    top_output_logprob_idx: list[Any] | None = None
    embed_logits: list[Any] | None = None
    scores: list[float] | None = None
    input_token_logprobs_lst: list[Any] | None = None
    output_token_logprobs_lst: list[Any] | None = None
    token_ids_input_logprobs: list[Any] | None = None
    token_ids_output_logprobs: list[Any] | None = None


def check_close_model_outputs(
    hf_outputs: ModelOutput,
    srt_outputs: ModelOutput,
    prefill_tolerance: float,
    decode_tolerance: float,
    rouge_l_tolerance: float,
    debug_text: str = "",
    check_logprobs: bool = True,
) -> None:
    """Raises AssertionError, naming the prompt, when texts are less alike than `rouge_l_tolerance` or top logprobs of a prompt of at most
    100 tokens, or of what was generated behind it, differ by as much as their tolerance."""
    texts, other_texts = hf_outputs.output_strs or [], srt_outputs.output_strs or []
    scores = calculate_rouge_l(texts, other_texts)
    for place, score in enumerate(scores):
        assert score >= rouge_l_tolerance, (
            f"{debug_text}prompt {place}: ROUGE-L {score:.3f} < {rouge_l_tolerance}: "
            f"{texts[place]!r} and {other_texts[place]!r}"
        )
    assert scores, f"{debug_text}nothing was generated"
    if check_logprobs:
        for place in range(len(scores)):
            _check_prompt(
                hf_outputs, srt_outputs, place, prefill_tolerance, decode_tolerance, debug_text
            )


def _check_prompt(
    one: ModelOutput,
    other: ModelOutput,
    place: int,
    prefill_tolerance: float,
    decode_tolerance: float,
    debug_text: str,
) -> None:
    prompts = _pair(one.top_input_logprobs, other.top_input_logprobs, place)
    if len(prompts[0]) > _MAX_COMPARED_PROMPT:
        return
    outputs = _pair(one.top_output_logprobs, other.top_output_logprobs, place)
    pairs = (("prefill", prompts, prefill_tolerance), ("decode", outputs, decode_tolerance))
    for phase, (theirs, ours), tolerance in pairs:
        assert len(theirs) == len(ours), (
            f"{debug_text}prompt {place}: {phase} logprobs of {len(theirs)} and of {len(ours)} positions"
        )
        difference = (torch.tensor(theirs) - torch.tensor(ours)).abs().max().item()
        assert difference < tolerance, (
            f"{debug_text}prompt {place}: {phase} logprobs differ by {difference:.3g}, allowed {tolerance}"
        )


def _pair(
    one: Sequence[Any] | None, other: Sequence[Any] | None, place: int
) -> tuple[list[Any], list[Any]]:
    assert one is not None and other is not None, "outputs without logprobs cannot be compared"
    return one[place], other[place]
