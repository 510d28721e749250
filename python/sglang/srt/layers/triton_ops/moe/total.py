"""The weighted sum of what a token's experts gave."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sglang.srt.layers.triton_ops import next_power_of_2
from sglang.srt.utils.dependent_launch import (
    launch_dependents,
    launch_options,
    wait_for_earlier,
)

_BLOCK = 1024


@dataclass(frozen=True)
class Share:
    """What parts are multiplied by: `weights` float32 [T, k] contiguous (None: 1), and `factor`, the same for all."""

    weights: torch.Tensor | None
    factor: float


def add_up(
    parts: torch.Tensor,  # [n, D] contiguous
    ids: torch.Tensor,  # int32 [T, k] contiguous
    num_experts: int,
    share: Share,
    sums: bool,
) -> torch.Tensor:  # [T, D], or [T, k, D] where not `sums`
    """Sums in float32. Choices outside of 0 .. num_experts - 1 count zero, whatever their rows hold."""
    (num_tokens, top_k), width = ids.shape, parts.shape[1]
    shape = (num_tokens, width) if sums else (num_tokens, top_k, width)
    out = torch.empty(shape, dtype=parts.dtype, device=parts.device)
    # Unsummed, every choice is a token with one choice.
    num_rows, per_row = (num_tokens, top_k) if sums else (num_tokens * top_k, 1)
    block = min(_BLOCK, next_power_of_2(width))
    _add_up_kernel[(num_rows, triton.cdiv(width, block))](
        parts,
        ids,
        parts if share.weights is None else share.weights,
        out,
        share.factor,
        EXPERTS=num_experts,
        WIDTH=width,
        TOP_K=per_row,
        WEIGHTS=share.weights is not None,
        BLOCK=block,
        num_warps=4,
        **launch_options(parts.device),
    )
    return out


@triton.jit(do_not_specialize=["factor"])
def _add_up_kernel(
    parts,
    ids,
    shares,
    out,
    factor,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    TOP_K: tl.constexpr,
    WEIGHTS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    launch_dependents(PDL)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    total = tl.zeros([BLOCK], tl.float32)
    wait_for_earlier(PDL)
    for slot in tl.static_range(TOP_K):
        choice = row * TOP_K + slot
        expert = tl.load(ids + choice)
        is_real = (expert >= 0) & (expert < EXPERTS)
        end = tl.where(is_real, WIDTH, 0)
        part = tl.load(parts + choice * WIDTH + column, mask=column < end, other=0.0)
        part = part.to(tl.float32)
        if WEIGHTS:
            # A weight that is no number must not reach a token without experts here.
            part *= tl.load(shares + choice, mask=is_real, other=0.0)
        total += part
    tl.store(out + row * WIDTH + column, (total * factor).to(out.dtype.element_ty), mask=inside)
