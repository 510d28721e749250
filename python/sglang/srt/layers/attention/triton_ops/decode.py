"""Decode attention: one query token per request, its keys split over programs (flash-decoding).

The first kernel attends to one split of the keys of one request for all query heads of a kv head. Where the heads are few, the program
of a request and kv head that ends last combines the splits; where they are many, a second kernel does. More than `TEAM` splits are
combined in two rounds: the last program of a team combines the team's, the last of all teams combines the teams'. The order of sums
follows from the splits, whatever order the programs end in. Where a request has one split its program writes the output.
Legend: B requests, H query heads, K kv heads, d head dim, S slots of the pool.
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
from sglang.srt.layers.attention.triton_ops.decode_splits import (
    TEAM,
    combine_splits,
    counters,
    end_split,
    first_visible,
    suits_last_program,
)
from sglang.srt.utils.dependent_launch import (
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
    num_teams = plan.ceil_div(num_splits, TEAM)
    num_parts = num_splits + num_teams
    rows_combined = plan.next_power_of_2(heads)
    num_counters = batch * num_kv_heads * head_blocks * (num_teams + 1)
    ends_itself = not is_single and suits_last_program(rows_combined * block_v, num_counters)
    # With one split the kernel does not touch these.
    parts = (
        out if is_single else q.new_empty(batch, num_heads, num_parts, v_dim, dtype=torch.float32)
    )
    levels = out if is_single else q.new_empty(batch, num_heads, num_parts, dtype=torch.float32)
    _decode_kernel[(num_splits, num_kv_heads * head_blocks, batch)](
        q,
        keys,
        values,
        out,
        parts,
        levels,
        counters(q.device) if ends_itself else out,
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
        ENDS_ITSELF=ends_itself,
        ROWS=rows_combined,
        TEAM=TEAM,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **launch_options(q.device),
    )
    if not is_single and not ends_itself:
        combine_splits(parts, levels, out, lens, num_splits, split_len, options)
    return out


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
    counters,
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
    ENDS_ITSELF: tl.constexpr,
    ROWS: tl.constexpr,
    TEAM: tl.constexpr,
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
    first = first_visible(length, window, CHUNK, LOCAL)
    begin = first + split * span
    end = tl.minimum(begin + span, length)
    # Whatever the lengths are, counters end where they began.
    used = tl.minimum((length - first + span - 1) // span, num_splits)
    if not SINGLE:
        if (begin >= end) & ((not ENDS_ITSELF) | (split > 0)):
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
    if SINKS and (SINGLE or ENDS_ITSELF):
        # Several splits get it when they are combined.
        is_alone = row * 0 + used <= 1
        sink = tl.load(sinks + head, mask=is_row, other=0.0).to(tl.float32) * LOG2_E
        peak = tl.where(is_alone, sink, peak)
        total = tl.where(is_alone, 1.0, total)
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
    whole = out + out_row[:, None] * V_DIM + v_dims[None, :]
    num_teams = tl.cdiv(num_splits, TEAM)
    part = out_row * (num_splits + num_teams) + split
    if SINGLE:
        tl.store(whole, acc.to(out.dtype.element_ty), mask=is_out)
    elif not ENDS_ITSELF:
        tl.store(parts + part[:, None] * V_DIM + v_dims[None, :], acc, mask=is_out)
        tl.store(levels + part, peak + tl.log2(total), mask=is_row)
    elif used <= 1:
        tl.store(whole, acc.to(out.dtype.element_ty), mask=is_out)
    else:
        tl.store(parts + part[:, None] * V_DIM + v_dims[None, :], acc, mask=is_out)
        tl.store(levels + part, peak + tl.log2(total), mask=is_row)
        end_split(
            out, parts, levels, counters, sinks, split, used, num_splits, num_teams, request, kv_head, head_block,
            NUM_HEADS, GROUP, HEADS, V_DIM, BLOCK_V, SINKS, ROWS, TEAM,
        )  # fmt: skip
