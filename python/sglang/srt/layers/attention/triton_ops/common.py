"""What the attention kernels share: the online softmax of FlashAttention-2 over one range of keys.

A program holds BLOCK_M query rows; row r is one (token, head) pair, so that the heads of a group share the keys they
read and a decode fills a matrix product. Scores are kept in units of log 2, for which the hardware has an instruction.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

# Kernels read module constants only as constexpr.
LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def load_rows(
    base, index, stride, dims, inside, DIM: tl.constexpr, EVEN: tl.constexpr, MASKED: tl.constexpr
):
    """Rows `index` (int64 [N]) of `base`, columns `dims` [D], as [N, D]. Columns from DIM on are 0, and rows that
    are not `inside` if MASKED."""
    pointers = base + index[:, None] * stride + dims[None, :]
    if MASKED:
        if EVEN:
            return tl.load(pointers, mask=inside[:, None], other=0.0)
        else:
            return tl.load(pointers, mask=inside[:, None] & (dims[None, :] < DIM), other=0.0)
    else:
        if EVEN:
            return tl.load(pointers)
        else:
            return tl.load(pointers, mask=dims[None, :] < DIM, other=0.0)


@triton.jit
def attend_range(
    q,  # [BLOCK_M, BLOCK_D]
    q_tail,  # [BLOCK_M, BLOCK_TAIL]
    peak,  # [BLOCK_M] running maximum
    total,  # [BLOCK_M] running sum of weights
    acc,  # [BLOCK_M, BLOCK_V] running sum of weighted values
    begin,  # key positions begin .. end - 1 of the request
    end,
    slots,  # slots of the request's key positions; not read unless FROM_POOL
    first_row,  # else: key position p is row first_row + p
    keys,
    values,
    key_stride,
    value_stride,
    positions,  # [BLOCK_M] of the queries, for CAUSAL
    lows,  # [BLOCK_M] first visible key, for LOCAL
    span_starts,  # [BLOCK_M] for SPANS: keys that are visible besides
    span_ends,
    mask_rows,  # [BLOCK_M] pointers to the masks of the queries, for MASK
    scale,
    cap,
    DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_TAIL: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FROM_POOL: tl.constexpr,
    V_IS_K: tl.constexpr,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
    LOCAL: tl.constexpr,
    SPANS: tl.constexpr,
    MASK: tl.constexpr,
    CAP: tl.constexpr,
):
    """One range of keys. With MASKED False every row sees every key of it, and its length is a multiple of
    BLOCK_N."""
    dims = tl.arange(0, BLOCK_D)
    v_dims = tl.arange(0, BLOCK_V)
    for block in range(begin, end, BLOCK_N):
        key_positions = block + tl.arange(0, BLOCK_N)
        inside = key_positions < end
        if FROM_POOL:
            if MASKED:
                index = tl.load(slots + key_positions, mask=inside, other=0).to(tl.int64)
            else:
                index = tl.load(slots + key_positions).to(tl.int64)
        else:
            index = (first_row + key_positions).to(tl.int64)

        k = load_rows(keys, index, key_stride, dims, inside, DIM, BLOCK_D <= DIM, MASKED).to(
            q.dtype
        )
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if BLOCK_TAIL > 0:
            tail_dims = BLOCK_D + tl.arange(0, BLOCK_TAIL)
            k_tail = load_rows(
                keys, index, key_stride, tail_dims, inside, DIM, BLOCK_D + BLOCK_TAIL <= DIM, MASKED
            ).to(q.dtype)
            scores = tl.dot(q_tail, tl.trans(k_tail), scores, input_precision="ieee")
        scores = scores * scale
        if CAP:
            # scale holds 2 / (cap * ln 2): tanh(x) = 1 - 2 / (exp(2 x) + 1).
            scores = cap * (1.0 - 2.0 / (tl.exp2(scores) + 1.0))

        if MASKED:
            visible = inside[None, :]
            if CAUSAL:
                visible = visible & (key_positions[None, :] <= positions[:, None])
            if LOCAL:
                visible = visible & (key_positions[None, :] >= lows[:, None])
            if MASK:
                bits = tl.load(
                    mask_rows[:, None] + key_positions[None, :], mask=inside[None, :], other=0
                )
                visible = visible & (bits != 0)
            if SPANS:
                in_span = (key_positions[None, :] >= span_starts[:, None]) & (
                    key_positions[None, :] < span_ends[:, None]
                )
                visible = visible | (in_span & inside[None, :])
            scores = tl.where(visible, scores, float("-inf"))

        new_peak = tl.maximum(peak, tl.max(scores, 1))
        # A row that has seen no key yet has the peak -inf, and -inf - -inf is not a number.
        shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        decay = tl.exp2(peak - shift)
        weights = tl.exp2(scores - shift[:, None])
        total = total * decay + tl.sum(weights, 1)
        if V_IS_K:
            v = k
        else:
            v = load_rows(
                values, index, value_stride, v_dims, inside, V_DIM, BLOCK_V <= V_DIM, MASKED
            ).to(q.dtype)
        acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
        peak = new_peak
    return peak, total, acc


def score_factors(scale: float, logit_cap: float) -> tuple[float, float]:
    """What the kernels multiply scores by before and after the cap."""
    log2_e = math.log2(math.e)
    if logit_cap > 0:
        return 2.0 * log2_e * scale / logit_cap, log2_e * logit_cap
    return log2_e * scale, 0.0


def is_view_of(values: torch.Tensor, keys: torch.Tensor, v_dim: int, block: int) -> bool:
    """Are the values the first block of the keys, as in a latent cache? Then they are read once."""
    return (
        v_dim == block
        and values.data_ptr() == keys.data_ptr()
        and values.stride()[:2] == keys.stride()[:2]
        and values.dtype == keys.dtype
    )


def with_dense_heads(x: torch.Tensor) -> torch.Tensor:
    """The kernels want the last dimension contiguous; the others may have any stride."""
    return x if x.stride(-1) == 1 else x.contiguous()
