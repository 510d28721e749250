"""The router's choice in one launch: scores, the k best, their weights."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sglang.srt.layers.triton_ops import next_power_of_2
from sglang.srt.utils.dependent_launch import (
    launch_dependents,
    launch_options,
    wait_for_earlier,
)


def choose_experts(
    logits: torch.Tensor,
    top_k: int,
    *,
    is_sigmoid: bool,
    renormalize: bool,
    correction_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights float32 [T, k] and ids int32 [T, k] of logits [T, E], best first; of equal scores the lower id.

    Scores are softmax or sigmoid of the logits; `correction_bias` [E] takes part in the choice only; `renormalize` divides the weights by
    their sum. E up to MAX_ROUTED_EXPERTS. Ids are valid whatever the logits hold.
    """
    num_tokens, num_experts = logits.shape
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    weights = torch.empty(num_tokens, top_k, dtype=torch.float32, device=logits.device)
    ids = torch.empty(num_tokens, top_k, dtype=torch.int32, device=logits.device)
    if num_tokens:
        columns = next_power_of_2(num_experts)
        _choose_kernel[(num_tokens,)](
            logits,
            logits if correction_bias is None else correction_bias,
            weights,
            ids,
            logits.stride(0),
            EXPERTS=num_experts,
            COLUMNS=columns,
            TOP_K=top_k,
            SLOTS=next_power_of_2(top_k),
            SIGMOID=is_sigmoid,
            BIAS=correction_bias is not None,
            RENORMALIZE=renormalize,
            num_warps=1 if columns <= 256 else 4,
            **launch_options(logits.device),
        )
    return weights, ids


@triton.jit
def _choose_kernel(
    logits,
    bias,
    weights,
    ids,
    stride,
    EXPERTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOP_K: tl.constexpr,
    SLOTS: tl.constexpr,
    SIGMOID: tl.constexpr,
    BIAS: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    PDL: tl.constexpr,
):
    launch_dependents(PDL)
    token = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, COLUMNS)
    inside = expert < EXPERTS
    wait_for_earlier(PDL)
    value = tl.load(logits + token * stride + expert, mask=inside, other=float("-inf"))
    value = value.to(tl.float32)
    if SIGMOID:
        score = 1.0 / (1.0 + tl.exp(tl.minimum(-value, 88.0, propagate_nan=tl.PropagateNan.ALL)))
    else:
        score = tl.exp(value - tl.max(value, 0))
        score = score / tl.sum(score, 0)
    rank = score
    if BIAS:
        rank += tl.load(bias + expert, mask=inside, other=0.0).to(tl.float32)
    # A score that is no number comes first, as it does in a sort; padding and what was chosen come last.
    rank = tl.where(rank != rank, float("inf"), rank)
    rank = tl.where(inside, rank, float("-inf"))
    slot = tl.arange(0, SLOTS)
    chosen = tl.zeros([SLOTS], tl.int32)
    weight = tl.zeros([SLOTS], tl.float32)
    for i in tl.static_range(TOP_K):
        best = tl.argmax(rank, 0, tie_break_left=True).to(tl.int32)
        chosen = tl.where(slot == i, best, chosen)
        weight = tl.where(slot == i, tl.sum(tl.where(expert == best, score, 0.0), 0), weight)
        rank = tl.where(expert == best, float("-inf"), rank)
    if RENORMALIZE:
        weight = weight / tl.sum(tl.where(slot < TOP_K, weight, 0.0), 0)
    tl.store(ids + token * TOP_K + slot, chosen, mask=slot < TOP_K)
    tl.store(weights + token * TOP_K + slot, weight, mask=slot < TOP_K)
