"""`act(gate) * up` of [gate | up] in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sglang.srt.utils.dependent_launch import (
    launch_dependents,
    launch_options,
    wait_for_earlier,
)

_BLOCK = 1024


def gated_activation(x: torch.Tensor, activation: str) -> torch.Tensor:
    """[..., 2d] = [gate | up] -> [..., d], contiguous. `activation`: "silu", "gelu" or "gelu_tanh".

    The activation is computed in float32 and rounded to the dtype before `up` multiplies it.
    """
    width = x.shape[-1] // 2
    rows = x.reshape(-1, 2 * width)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    out = torch.empty(*x.shape[:-1], width, dtype=x.dtype, device=x.device)
    if out.numel():
        _gated_kernel[(rows.shape[0], triton.cdiv(width, _BLOCK))](
            rows,
            out,
            rows.stride(0),
            width,
            ACTIVATION=activation,
            BLOCK=_BLOCK,
            num_warps=4,
            **launch_options(x.device),
        )
    return out


@triton.jit
def _gated_kernel(
    x,
    out,
    x_stride,
    width,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    launch_dependents(PDL)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    source = x + row * x_stride + column
    wait_for_earlier(PDL)
    gate = tl.load(source, mask=inside, other=0.0)
    up = tl.load(source + width, mask=inside, other=0.0)
    value = activate_and_multiply(gate, up, ACTIVATION, out.dtype.element_ty)
    tl.store(out + row * width + column, value, mask=inside)


@triton.jit
def activate_and_multiply(gate, up, ACTIVATION: tl.constexpr, DTYPE: tl.constexpr):
    """`act(gate) * up`, each rounded to DTYPE, of values of that dtype."""
    gate = gate.to(tl.float32)
    if ACTIVATION == "silu":
        value = gate / (1.0 + tl.exp(tl.minimum(-gate, 80.0)))
    elif ACTIVATION == "gelu":
        value = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    else:
        tl.static_assert(ACTIVATION == "gelu_tanh")
        # tanh(y) = 1 - 2 / (exp(2 y) + 1)
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        value = 0.5 * gate * (2.0 - 2.0 / (tl.exp(tl.minimum(2.0 * inner, 80.0)) + 1.0))
    return (value.to(DTYPE).to(tl.float32) * up.to(tl.float32)).to(DTYPE)
