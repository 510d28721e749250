"""Decode attention: one query token per request, its keys split over programs (flash-decoding).

The first kernel attends to one split of the keys of one request for all query heads of a kv head; the second combines
the splits. Where there is one split the first writes the output. Legend: B requests, H query heads, K kv heads, d head
dim, S slots of the pool.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sglang.srt.layers.attention.triton_ops import plan
from sglang.srt.layers.attention.triton_ops.common import (
    LOG2_E,
    attend_range,
    is_view_of,
    load_rows,
    score_factors,
    with_dense_heads,
)
from sglang.srt.layers.triton_ops.dependent_launch import (
    launch_dependents,
    launch_options,
    wait_for_earlier,
)


@dataclass(frozen=True)
class DecodeOptions:
    """What a layer asks for.

    `window`: earlier tokens that are visible, -1 for all. `chunk`: width of the chunks that attention is confined to,
    0 without. `sinks` [H]: logits of an extra key without value. `k_scale`, `v_scale`: what stored keys and values are
    multiplied by.
    """

    scale: float
    logit_cap: float = 0.0
    window: int = -1
    chunk: int = 0
    sinks: torch.Tensor | None = None
    k_scale: float = 1.0
    v_scale: float = 1.0


def decode_attention(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    rows: torch.Tensor,
    lens: torch.Tensor,
    offsets: torch.Tensor | None,
    num_splits: int,
    split_len: torch.Tensor,
    options: DecodeOptions,
    config: plan.KernelConfig | None = None,
) -> torch.Tensor:
    """q [B, H, d] over the pool's keys [S, K, d] and values [S, K, d_v] -> [B, H, d_v].

    The slots of request b are `table[rows[b], offsets[b] : offsets[b] + lens[b]]`; the query is at position
    `lens[b] - 1` and sees all of them that the options allow. `table` int32; `rows`, `lens`, `offsets` [B] int32 or
    int64, no offsets for 0. `split_len` int32 [1] on the device: visible keys per split; `num_splits` times it
    reaches the longest request. A request without keys gets zeros.
    """
    q, keys, values = with_dense_heads(q), with_dense_heads(keys), with_dense_heads(values)
    batch, num_heads, dim = q.shape
    num_kv_heads, v_dim = keys.shape[1], values.shape[2]
    group = num_heads // num_kv_heads
    config = config or plan.decode_config(group, dim, v_dim, q.element_size())
    head_dim = plan.split_head_dim(dim)
    block_v = max(16, plan.next_power_of_2(v_dim))
    heads = min(group, config.block_m)
    head_blocks = plan.ceil_div(group, heads)
    scale, cap = score_factors(options.scale * options.k_scale, options.logit_cap)
    out = q.new_empty(batch, num_heads, v_dim)
    is_single = num_splits == 1
    # With one split the kernel does not touch these.
    parts = (
        out if is_single else q.new_empty(batch, num_heads, num_splits, v_dim, dtype=torch.float32)
    )
    levels = out if is_single else q.new_empty(batch, num_heads, num_splits, dtype=torch.float32)
    _decode_kernel[(num_splits, num_kv_heads * head_blocks, batch)](
        q,
        keys,
        values,
        out,
        parts,
        levels,
        table,
        rows,
        lens,
        lens if offsets is None else offsets,
        split_len,
        q if options.sinks is None else options.sinks,
        scale,
        cap,
        options.v_scale,
        options.window,
        num_splits,
        q.stride(0),
        q.stride(1),
        keys.stride(0),
        keys.stride(1),
        values.stride(0),
        values.stride(1),
        table.stride(0),
        NUM_HEADS=num_heads,
        GROUP=group,
        HEADS=heads,
        HEAD_BLOCKS=head_blocks,
        DIM=dim,
        V_DIM=v_dim,
        BLOCK_D=head_dim.block,
        BLOCK_TAIL=head_dim.tail,
        BLOCK_V=block_v,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        CHUNK=options.chunk,
        LOCAL=options.window > 0 or options.chunk > 0,
        CAP=options.logit_cap > 0,
        SINKS=options.sinks is not None,
        OFFSETS=offsets is not None,
        V_IS_K=is_view_of(values, keys, v_dim, head_dim.block),
        SINGLE=is_single,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **launch_options(q.device),
    )
    if not is_single:
        _combine_kernel[(num_heads, batch)](
            parts,
            levels,
            out,
            lens,
            split_len,
            q if options.sinks is None else options.sinks,
            options.window,
            num_splits,
            NUM_HEADS=num_heads,
            V_DIM=v_dim,
            BLOCK_V=block_v,
            BLOCK_S=min(32, max(2, plan.next_power_of_2(num_splits))),
            CHUNK=options.chunk,
            LOCAL=options.window > 0 or options.chunk > 0,
            SINKS=options.sinks is not None,
            num_warps=4,
            **launch_options(q.device),
        )
    return out


@triton.jit
def _first_visible(length, window, CHUNK: tl.constexpr, LOCAL: tl.constexpr):
    """The first key that the query at position `length - 1` sees."""
    first = 0
    if LOCAL:
        first = tl.where(window > 0, tl.maximum(length - 1 - window, 0), 0)
        if CHUNK > 0:
            first = tl.maximum(first, tl.maximum(length - 1, 0) // CHUNK * CHUNK)
    return first


@triton.jit(
    do_not_specialize=["window", "num_splits", "scale", "cap", "v_scale"],
    do_not_specialize_on_alignment=["rows", "lens", "offsets", "split_len"],
)
def _decode_kernel(
    q,
    keys,
    values,
    out,
    parts,
    levels,
    table,
    rows,
    lens,
    offsets,
    split_len,
    sinks,
    scale,
    cap,
    v_scale,
    window,
    num_splits,
    q_stride,
    q_head_stride,
    key_stride,
    key_head_stride,
    value_stride,
    value_head_stride,
    table_stride,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_BLOCKS: tl.constexpr,
    DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_TAIL: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    LOCAL: tl.constexpr,
    CAP: tl.constexpr,
    SINKS: tl.constexpr,
    OFFSETS: tl.constexpr,
    V_IS_K: tl.constexpr,
    SINGLE: tl.constexpr,
    PDL: tl.constexpr,
):
    """One split of one request for the HEADS query heads of a block of a kv head's group."""
    launch_dependents(PDL)
    split = tl.program_id(0)
    kv_head = tl.program_id(1) // HEAD_BLOCKS
    head_block = tl.program_id(1) % HEAD_BLOCKS
    request = tl.program_id(2).to(tl.int64)
    wait_for_earlier(PDL)
    length = tl.load(lens + request).to(tl.int32)
    span = tl.load(split_len)
    begin = _first_visible(length, window, CHUNK, LOCAL) + split * span
    end = tl.minimum(begin + span, length)
    if not SINGLE:
        if begin >= end:
            return

    slots = table + tl.load(rows + request).to(tl.int64) * table_stride
    if OFFSETS:
        slots += tl.load(offsets + request)
    row = tl.arange(0, BLOCK_M)
    group_head = head_block * HEADS + row
    is_row = (row < HEADS) & (group_head < GROUP)
    head = kv_head * GROUP + group_head

    query = q + request * q_stride
    dims = tl.arange(0, BLOCK_D)
    head_index = head.to(tl.int64)
    q_main = load_rows(query, head_index, q_head_stride, dims, is_row, DIM, BLOCK_D <= DIM, True)
    q_tail = q_main
    if BLOCK_TAIL > 0:
        tail_dims = BLOCK_D + tl.arange(0, BLOCK_TAIL)
        q_tail = load_rows(
            query,
            head_index,
            q_head_stride,
            tail_dims,
            is_row,
            DIM,
            BLOCK_D + BLOCK_TAIL <= DIM,
            True,
        )

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if SINKS and SINGLE:
        peak = tl.load(sinks + head, mask=is_row, other=0.0).to(tl.float32) * LOG2_E
        total = tl.full([BLOCK_M], 1.0, tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)

    key_base = keys + kv_head.to(tl.int64) * key_head_stride
    value_base = values + kv_head.to(tl.int64) * value_head_stride
    # Whole blocks first, which need no mask.
    middle = begin + tl.maximum(end - begin, 0) // BLOCK_N * BLOCK_N
    for masked in tl.static_range(2):
        peak, total, acc = attend_range(
            q_main,
            q_tail,
            peak,
            total,
            acc,
            middle if masked else begin,
            end if masked else middle,
            slots,
            0,
            key_base,
            value_base,
            key_stride,
            value_stride,
            row,
            row,
            row,
            row,
            row,
            scale,
            cap,
            DIM,
            V_DIM,
            BLOCK_D,
            BLOCK_TAIL,
            BLOCK_V,
            BLOCK_N,
            FROM_POOL=True,
            V_IS_K=V_IS_K,
            MASKED=masked == 1,
            CAUSAL=False,
            LOCAL=False,
            SPANS=False,
            MASK=False,
            CAP=CAP,
        )

    acc = acc * (v_scale / tl.where(total > 0.0, total, 1.0))[:, None]
    v_dims = tl.arange(0, BLOCK_V)
    out_row = request * NUM_HEADS + head
    is_out = is_row[:, None] & (v_dims[None, :] < V_DIM)
    if SINGLE:
        pointers = out + out_row[:, None] * V_DIM + v_dims[None, :]
        tl.store(pointers, acc.to(out.dtype.element_ty), mask=is_out)
    else:
        part = out_row * num_splits + split
        tl.store(parts + part[:, None] * V_DIM + v_dims[None, :], acc, mask=is_out)
        tl.store(levels + part, peak + tl.log2(total), mask=is_row)


@triton.jit(
    do_not_specialize=["window", "num_splits"],
    do_not_specialize_on_alignment=["lens", "split_len"],
)
def _combine_kernel(
    parts,
    levels,
    out,
    lens,
    split_len,
    sinks,
    window,
    num_splits,
    NUM_HEADS: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_S: tl.constexpr,
    CHUNK: tl.constexpr,
    LOCAL: tl.constexpr,
    SINKS: tl.constexpr,
    PDL: tl.constexpr,
):
    """The splits of one request and head, weighted by their sums of exponentials. Splits that no key fell into were
    not written and are not read."""
    launch_dependents(PDL)
    head = tl.program_id(0)
    request = tl.program_id(1).to(tl.int64)
    wait_for_earlier(PDL)
    length = tl.load(lens + request).to(tl.int32)
    span = tl.load(split_len)
    used = (length - _first_visible(length, window, CHUNK, LOCAL) + span - 1) // span

    out_row = request * NUM_HEADS + head
    part_base = out_row * num_splits
    v_dims = tl.arange(0, BLOCK_V)
    if SINKS:
        peak = tl.load(sinks + head).to(tl.float32) * LOG2_E
        total = 1.0
    else:
        peak = float("-inf")
        total = 0.0
    acc = tl.zeros([BLOCK_V], tl.float32)
    for block in range(0, used, BLOCK_S):
        split = block + tl.arange(0, BLOCK_S)
        is_used = split < used
        level = tl.load(levels + part_base + split, mask=is_used, other=float("-inf"))
        new_peak = tl.maximum(peak, tl.max(level, 0))
        decay = tl.exp2(peak - new_peak)
        weights = tl.exp2(level - new_peak)
        part = tl.load(
            parts + (part_base + split)[:, None] * V_DIM + v_dims[None, :],
            mask=is_used[:, None] & (v_dims[None, :] < V_DIM),
            other=0.0,
        )
        acc = acc * decay + tl.sum(weights[:, None] * part, 0)
        total = total * decay + tl.sum(weights, 0)
        peak = new_peak
    result = acc / tl.where(total > 0.0, total, 1.0)
    tl.store(out + out_row * V_DIM + v_dims, result.to(out.dtype.element_ty), mask=v_dims < V_DIM)
