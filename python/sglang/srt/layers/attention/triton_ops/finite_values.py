"""Moves what is no number from values to keys, in one pass that writes only where it finds something."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sglang.srt.layers.attention.triton_ops import plan

# Numbers that a program looks at.
_BLOCK = 4096


def move_to_keys_in_place(k: torch.Tensor, v: torch.Tensor) -> None:
    """See `finite_values.move_to_keys`. k [T, K, d] and v [T, K, d_v], the last dimension of both contiguous."""
    num_rows = v.shape[0] * v.shape[1]
    block_v = plan.next_power_of_2(v.shape[2])
    rows = max(1, _BLOCK // block_v)
    _move_kernel[(plan.ceil_div(num_rows, rows),)](
        k,
        v,
        num_rows,
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        HEADS=v.shape[1],
        DIM=k.shape[2],
        V_DIM=v.shape[2],
        BLOCK_D=plan.next_power_of_2(k.shape[2]),
        BLOCK_V=block_v,
        ROWS=rows,
        num_warps=4,
    )


@triton.jit(do_not_specialize=["num_rows"])
def _move_kernel(
    k,
    v,
    num_rows,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    ROWS: tl.constexpr,
):
    """ROWS pairs of a token and a kv head."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token, head = row // HEADS, row % HEADS
    is_row = row < num_rows
    v_dims = tl.arange(0, BLOCK_V)
    v_rows = v + (token * v_stride + head * v_head_stride)[:, None] + v_dims[None, :]
    is_value = is_row[:, None] & (v_dims < V_DIM)[None, :]
    values = tl.load(v_rows, mask=is_value, other=0.0).to(tl.float32)
    # False for NaN too.
    is_finite = tl.abs(values) < float("inf")
    is_lost = tl.min(is_finite.to(tl.int32), 1) == 0
    if tl.max(is_lost.to(tl.int32), 0) > 0:
        dims = tl.arange(0, BLOCK_D)
        k_rows = k + (token * k_stride + head * k_head_stride)[:, None] + dims[None, :]
        lost_key = tl.full([ROWS, BLOCK_D], float("nan"), tl.float32)
        zeros = tl.zeros([ROWS, BLOCK_V], tl.float32)
        tl.store(v_rows, zeros.to(v.dtype.element_ty), mask=is_value & is_lost[:, None])
        tl.store(
            k_rows,
            lost_key.to(k.dtype.element_ty),
            mask=is_lost[:, None] & (dims < DIM)[None, :],
        )
