"""What happens to q, k and v between their projection and attention, in one launch:

    q, k = rope(norm(q)), rope(norm(k));  pool[slot] = k, v

Legend: T tokens, H query heads, K kv heads, d head dim, S slots of the pool.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sglang.srt.utils.dependent_launch import (
    launch_dependents,
    launch_options,
    wait_for_earlier,
)


@dataclass(frozen=True)
class HeadNorm:
    """An RMS norm of every head, with one weight [d] for all heads of q and one for those of k."""

    q_weight: torch.Tensor
    k_weight: torch.Tensor
    eps: float


def norm_rope_store(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    norm: HeadNorm | None,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """Change q [T, H * d] and k [T, K * d] in place, and write k and v [T, K * d] to the pool.

    `cos_sin` float32 [rows, d]: cosines, then sines, of the d / 2 pairs (i, i + d / 2); d is a power of two. `keys`,
    `values` [S, K, d] contiguous. `positions`, `slots` [T] int64. Rounds after the norm and after the rotation, as the
    layers do one by one.
    """
    num_tokens, dim = q.shape[0], cos_sin.shape[1]
    num_q, num_kv = q.shape[1] // dim, k.shape[1] // dim
    block = next(n for n in (4, 2, 1) if num_q % n == 0 and num_kv % n == 0)
    if num_tokens == 0:
        return
    _norm_rope_store_kernel[(num_tokens, (num_q + 2 * num_kv) // block)](
        q,
        k,
        v,
        positions,
        cos_sin,
        q if norm is None else norm.q_weight,
        q if norm is None else norm.k_weight,
        keys,
        values,
        slots,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        keys.stride(0),
        values.stride(0),
        0.0 if norm is None else norm.eps,
        NUM_Q=num_q,
        NUM_KV=num_kv,
        DIM=dim,
        BLOCK=block,
        NORM=norm is not None,
        num_warps=max(1, min(4, block * dim // 128)),
        **launch_options(q.device),
    )


@triton.jit(
    do_not_specialize=["eps"],
    # They are pieces of one upload: where they begin depends on the number of tokens.
    do_not_specialize_on_alignment=["positions", "slots"],
)
def _norm_rope_store_kernel(
    q,
    k,
    v,
    positions,
    cos_sin,
    q_weight,
    k_weight,
    keys,
    values,
    slots,
    q_stride,
    k_stride,
    v_stride,
    key_stride,
    value_stride,
    eps,
    NUM_Q: tl.constexpr,
    NUM_KV: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    """BLOCK heads of one token: of q, of k or of v."""
    HALF: tl.constexpr = DIM // 2
    launch_dependents(PDL)
    token = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK
    head = tl.arange(0, BLOCK)
    pair = tl.arange(0, HALF)
    is_key = first >= NUM_Q
    if NORM:
        weight = (k_weight if is_key else q_weight) + pair
        w1, w2 = tl.load(weight), tl.load(weight + HALF)
    # The table of angles may be one that a kernel of this step made.
    wait_for_earlier(PDL)
    slot = tl.load(slots + token).to(tl.int64)
    if first >= NUM_Q + NUM_KV:
        whole = (first - NUM_Q - NUM_KV + head)[:, None] * DIM + tl.arange(0, DIM)[None, :]
        tl.store(values + slot * value_stride + whole, tl.load(v + token * v_stride + whole))
    else:
        row = cos_sin + tl.load(positions + token).to(tl.int64) * DIM
        cos, sin = tl.load(row + pair)[None, :], tl.load(row + HALF + pair)[None, :]
        own = tl.where(is_key, first - NUM_Q, first)
        offsets = (own + head)[:, None] * DIM + pair[None, :]
        source = (k + token * k_stride if is_key else q + token * q_stride) + offsets
        x1 = tl.load(source).to(tl.float32)
        x2 = tl.load(source + HALF).to(tl.float32)
        if NORM:
            square = tl.sum(x1 * x1, 1) + tl.sum(x2 * x2, 1)
            scale = (1.0 / tl.sqrt_rn(square / DIM + eps))[:, None]
            x1 = x1 * scale * w1.to(tl.float32)[None, :]
            x2 = x2 * scale * w2.to(tl.float32)[None, :]
            x1 = x1.to(q.dtype.element_ty).to(tl.float32)
            x2 = x2.to(q.dtype.element_ty).to(tl.float32)
        y1 = (x1 * cos - x2 * sin).to(q.dtype.element_ty)
        y2 = (x2 * cos + x1 * sin).to(q.dtype.element_ty)
        tl.store(source, y1)
        tl.store(source + HALF, y2)
        if is_key:
            target = keys + slot * key_stride + offsets
            tl.store(target, y1)
            tl.store(target + HALF, y2)
