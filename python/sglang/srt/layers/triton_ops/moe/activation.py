"""The activation inside experts, for kernels that have the sums of gate and up in registers."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(
    gate,
    up,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """`act(gate) * up`, or `act(gate)` when not gated; float32 in and out, rounded to DTYPE where the plain form rounds."""
    gate = gate.to(DTYPE).to(tl.float32)
    if not GATED:
        return _apply(gate, ACTIVATION)
    up = up.to(DTYPE).to(tl.float32)
    if LIMIT is not None:
        gate = tl.minimum(gate, LIMIT, propagate_nan=tl.PropagateNan.ALL)
        up = tl.minimum(up, LIMIT, propagate_nan=tl.PropagateNan.ALL)
        up = tl.maximum(up, -LIMIT, propagate_nan=tl.PropagateNan.ALL)
    if ALPHA is not None:
        value = gate * _sigmoid(gate * ALPHA)
        up = (up + 1.0).to(DTYPE).to(tl.float32)
    else:
        value = _apply(gate, ACTIVATION)
    return value.to(DTYPE).to(tl.float32) * up


@triton.jit
def _apply(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        return x * _sigmoid(x)
    elif ACTIVATION == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_pytorch_tanh":
        # tanh(y) = 1 - 2 / (exp(2 y) + 1)
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        return 0.5 * x * (2.0 - 2.0 / (tl.exp(tl.minimum(2.0 * inner, 80.0)) + 1.0))
    else:
        tl.static_assert(ACTIVATION == "relu" or ACTIVATION == "relu2")
        value = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
        return value * value if ACTIVATION == "relu2" else value


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(tl.minimum(-x, 80.0)))
