"""Attention in which every row sees all rows of its own sequence: that of vision towers.

One launch for all sequences, however different their lengths; scores are never written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK_ROWS, _BLOCK_KEYS = 64, 64
_LOG2_E = 1.4426950408889634


def attend_within(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor, longest: int
) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v within each sequence; [N, H, d] from three such tensors, whose heads are contiguous in d.

    `starts` int32 [n + 1] are the first rows of the sequences and N, on the device; `longest` is at least the rows of the longest one.
    """
    num_rows, num_heads, dim = q.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    if not num_rows:
        return out
    # Sequences first: the windows of a long video are more than the other axes may have.
    grid = (len(starts) - 1, triton.cdiv(longest, _BLOCK_ROWS), num_heads)
    _attend_kernel[grid](
        q,
        k,
        v,
        out,
        starts,
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        *out.stride()[:2],
        dim**-0.5 * _LOG2_E,
        DIM=dim,
        BLOCK_DIM=max(16, triton.next_power_of_2(dim)),
        BLOCK_ROWS=_BLOCK_ROWS,
        BLOCK_KEYS=_BLOCK_KEYS,
        # float32 is asked for where results are compared.
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=4,
    )
    return out


@triton.jit
def _attend_kernel(
    q,
    k,
    v,
    out,
    starts,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    out_row,
    out_head,
    scale,  # of scores whose power of two is taken
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    sequence, head = tl.program_id(0), tl.program_id(2)
    start, end = tl.load(starts + sequence), tl.load(starts + sequence + 1)
    first_row = start + tl.program_id(1) * BLOCK_ROWS
    if first_row < end:
        rows = (first_row + tl.arange(0, BLOCK_ROWS)).to(tl.int64)[:, None]
        dims = tl.arange(0, BLOCK_DIM)[None, :]
        is_real = (rows < end) & (dims < DIM)
        query = tl.load(q + rows * q_row + head * q_head + dims, mask=is_real, other=0.0)
        top = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_ROWS], tl.float32)
        found = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
        for first_key in range(start, end, BLOCK_KEYS):
            keys = (first_key + tl.arange(0, BLOCK_KEYS)).to(tl.int64)[:, None]
            is_key = (keys < end) & (dims < DIM)
            key = tl.load(k + keys * k_row + head * k_head + dims, mask=is_key, other=0.0)
            value = tl.load(v + keys * v_row + head * v_head + dims, mask=is_key, other=0.0)
            scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
            in_sequence = first_key + tl.arange(0, BLOCK_KEYS) < end
            scores = tl.where(in_sequence[None, :], scores, float("-inf"))
            new_top = tl.maximum(top, tl.max(scores, 1))
            weights = tl.exp2(scores - new_top[:, None])
            fading = tl.exp2(top - new_top)
            total = total * fading + tl.sum(weights, 1)
            product = tl.dot(weights.to(value.dtype), value, input_precision=PRECISION)
            found = found * fading[:, None] + product
            top = new_top
        place = out + rows * out_row + head * out_head + dims
        tl.store(place, (found / total[:, None]).to(out.dtype.element_ty), mask=is_real)
