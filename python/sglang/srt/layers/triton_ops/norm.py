"""RMS norm, alone or with the addition of the residual before it, in one pass over the rows."""

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


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None = None,
    *,
    weight_offset: float = 0.0,
    round_before_weight: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(norm(s), s)` with `s = x + residual` rounded to the dtype of `x`; without a residual `s` is `x` itself.

    x and residual [..., D], D up to `MAX_NORM_WIDTH`; the result is contiguous. The norm is `s / sqrt(mean(s^2) + eps) *
    (weight + weight_offset)` in float32; `round_before_weight` rounds to the dtype before the weight multiplies.
    """
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = rows
    if residual is not None:
        residual = residual.reshape(-1, width)
        residual = residual if residual.stride(-1) == 1 else residual.contiguous()
        total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block = next_power_of_2(width)
    if rows.shape[0]:
        _rms_norm_kernel[(rows.shape[0],)](
            rows,
            rows if residual is None else residual,
            rows if weight is None else weight,
            out,
            total,
            rows.stride(0),
            rows.stride(0) if residual is None else residual.stride(0),
            eps,
            WIDTH=width,
            BLOCK=block,
            RESIDUAL=residual is not None,
            WEIGHT=weight is not None,
            OFFSET=weight_offset,
            ROUND=round_before_weight,
            num_warps=min(16, max(1, block // 512)),
            **launch_options(x.device),
        )
    return out, (x if residual is None else total)


@triton.jit(do_not_specialize=["eps"])
def _rms_norm_kernel(
    x,
    residual,
    weight,
    out,
    total,
    x_stride,
    residual_stride,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    RESIDUAL: tl.constexpr,
    WEIGHT: tl.constexpr,
    OFFSET: tl.constexpr,
    ROUND: tl.constexpr,
    PDL: tl.constexpr,
):
    launch_dependents(PDL)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    if WEIGHT:
        factor = tl.load(weight + column, mask=inside, other=0.0)
    wait_for_earlier(PDL)
    value = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        value += tl.load(residual + row * residual_stride + column, mask=inside, other=0.0).to(
            tl.float32
        )
        rounded = value.to(out.dtype.element_ty)
        tl.store(total + row * WIDTH + column, rounded, mask=inside)
        value = rounded.to(tl.float32)
    value = value * (1.0 / tl.sqrt_rn(tl.sum(value * value, 0) / WIDTH + eps))
    if ROUND:
        value = value.to(out.dtype.element_ty).to(tl.float32)
    if WEIGHT:
        value = value * (factor.to(tl.float32) + OFFSET)
    tl.store(out + row * WIDTH + column, value.to(out.dtype.element_ty), mask=inside)
