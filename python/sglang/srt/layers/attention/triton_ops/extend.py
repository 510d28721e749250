"""Extend attention: the new tokens of each request over its cached prefix and over themselves.

Cached keys are read from the pool through the row table, those of the new tokens from the tensors at hand or, where
there are none, from the pool too. Legend: T new tokens of all requests, B requests, H query heads, K kv heads, d head
dim, S slots of the pool, N tiles.
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
    score_factors,
    with_dense_heads,
)


@dataclass(frozen=True)
class ExtendOptions:
    """What a layer asks for; see `DecodeOptions`.

    `is_causal`: whether a query sees only its own and earlier positions. `spans` int32 [T, 2]: for each query, key
    positions first .. last - 1 that it sees besides (an image that attends to itself). `mask` uint8 and `mask_starts`
    int64 [B]: from `mask[mask_starts[b]]` on, for each new token of request b one byte per key of the request, 0 where
    it is hidden; it stands in for causality.
    """

    scale: float
    logit_cap: float = 0.0
    window: int = -1
    chunk: int = 0
    sinks: torch.Tensor | None = None
    k_scale: float = 1.0
    v_scale: float = 1.0
    is_causal: bool = True
    spans: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    mask_starts: torch.Tensor | None = None


@dataclass(frozen=True)
class ExtendBatch:
    """Where the tokens of the requests are; everything on the device.

    `starts`: first row of T. `new_lens`: new tokens. `query_bases`: position of the first new token. `pool_lens`: keys
    that are read from the pool, at positions 0 .. pool_lens - 1; those of the new tokens follow if given as tensors.
    `offsets`: where in the row table the slot of position 0 stands. All int32 [B]; `rows` [B] int32 or int64.
    """

    table: torch.Tensor | None
    rows: torch.Tensor
    starts: torch.Tensor
    new_lens: torch.Tensor
    query_bases: torch.Tensor
    pool_lens: torch.Tensor
    offsets: torch.Tensor | None = None


def count_tile_tokens(group: int, config: plan.KernelConfig) -> int:
    """Tokens per tile, for `plan.build_tiles`."""
    return config.block_m // min(group, config.block_m)


def extend_attention(
    q: torch.Tensor,
    new: tuple[torch.Tensor, torch.Tensor] | None,
    pool: tuple[torch.Tensor, torch.Tensor] | None,
    batch: ExtendBatch,
    tiles: torch.Tensor,
    options: ExtendOptions,
    config: plan.KernelConfig,
) -> torch.Tensor:
    """q [T, H, d] -> [T, H, d_v].

    `new`: keys [T, K, d] and values [T, K, d_v] of the new tokens. `pool`: keys [S, K, d] and values [S, K, d_v], with
    the table of the batch. One of them may be missing. `tiles` int32 [N, 2] as `plan.build_tiles` makes them for
    `config`; rows that no tile covers are not written. Queries that see no key get zeros.
    """
    q = with_dense_heads(q)
    first, second = new or pool, pool or new
    assert first is not None and second is not None, "neither new keys nor a pool"
    new_k, new_v = with_dense_heads(first[0]), with_dense_heads(first[1])
    pool_k, pool_v = with_dense_heads(second[0]), with_dense_heads(second[1])
    num_tokens, num_heads, dim = q.shape
    num_kv_heads, v_dim = new_k.shape[1], new_v.shape[2]
    group = num_heads // num_kv_heads
    heads = min(group, config.block_m)
    head_blocks = plan.ceil_div(group, heads)
    head_dim = plan.split_head_dim(dim)
    scale, cap = score_factors(options.scale, options.logit_cap)
    is_causal = options.is_causal and options.mask is None
    out = q.new_empty(num_tokens, num_heads, v_dim)
    if len(tiles) == 0:
        return out
    # Arguments that an option does without are not read; any tensor stands in.
    _extend_kernel[(num_kv_heads * head_blocks, len(tiles))](
        q,
        new_k,
        new_v,
        pool_k,
        pool_v,
        out,
        tiles if batch.table is None else batch.table,
        batch.rows,
        batch.starts,
        batch.new_lens,
        batch.query_bases,
        batch.pool_lens,
        batch.starts if batch.offsets is None else batch.offsets,
        tiles,
        q if options.sinks is None else options.sinks,
        tiles if options.spans is None else options.spans,
        tiles if options.mask is None else options.mask.view(torch.uint8),
        tiles if options.mask_starts is None else options.mask_starts,
        scale,
        scale * options.k_scale,
        cap,
        options.v_scale,
        options.window,
        q.stride(0),
        q.stride(1),
        new_k.stride(0),
        new_k.stride(1),
        new_v.stride(0),
        new_v.stride(1),
        pool_k.stride(0),
        pool_k.stride(1),
        pool_v.stride(0),
        pool_v.stride(1),
        0 if batch.table is None else batch.table.stride(0),
        NUM_HEADS=num_heads,
        GROUP=group,
        HEADS=heads,
        HEAD_BLOCKS=head_blocks,
        TOKENS=count_tile_tokens(group, config),
        DIM=dim,
        V_DIM=v_dim,
        BLOCK_D=head_dim.block,
        BLOCK_TAIL=head_dim.tail,
        BLOCK_V=max(16, plan.next_power_of_2(v_dim)),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        CHUNK=options.chunk,
        POOL=pool is not None,
        NEW=new is not None,
        CAUSAL=is_causal,
        LOCAL=options.window > 0 or options.chunk > 0,
        SPANS=options.spans is not None,
        MASK=options.mask is not None,
        CAP=options.logit_cap > 0,
        SINKS=options.sinks is not None,
        OFFSETS=batch.offsets is not None,
        NEW_V_IS_K=is_view_of(new_v, new_k, v_dim, head_dim.block),
        POOL_V_IS_K=is_view_of(pool_v, pool_k, v_dim, head_dim.block),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out


@triton.jit
def _first_visible(position, window, CHUNK: tl.constexpr):
    """The first key that a query at `position` sees."""
    first = tl.where(window > 0, tl.maximum(position - window, 0), 0)
    if CHUNK > 0:
        first = tl.maximum(first, position // CHUNK * CHUNK)
    return first


@triton.jit(
    do_not_specialize=["window", "scale", "pool_scale", "cap", "v_scale"],
    do_not_specialize_on_alignment=[
        "rows",
        "starts",
        "new_lens",
        "query_bases",
        "pool_lens",
        "offsets",
        "tiles",
        "mask",
    ],
)
def _extend_kernel(
    q,
    new_k,
    new_v,
    pool_k,
    pool_v,
    out,
    table,
    rows,
    starts,
    new_lens,
    query_bases,
    pool_lens,
    offsets,
    tiles,
    sinks,
    spans,
    mask,
    mask_starts,
    scale,
    pool_scale,
    cap,
    v_scale,
    window,
    q_stride,
    q_head_stride,
    new_k_stride,
    new_k_head_stride,
    new_v_stride,
    new_v_head_stride,
    pool_k_stride,
    pool_k_head_stride,
    pool_v_stride,
    pool_v_head_stride,
    table_stride,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_BLOCKS: tl.constexpr,
    TOKENS: tl.constexpr,
    DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_TAIL: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    POOL: tl.constexpr,
    NEW: tl.constexpr,
    CAUSAL: tl.constexpr,
    LOCAL: tl.constexpr,
    SPANS: tl.constexpr,
    MASK: tl.constexpr,
    CAP: tl.constexpr,
    SINKS: tl.constexpr,
    OFFSETS: tl.constexpr,
    NEW_V_IS_K: tl.constexpr,
    POOL_V_IS_K: tl.constexpr,
):
    """One tile: TOKENS new tokens of one request for HEADS query heads of one kv head."""
    kv_head = tl.program_id(0) // HEAD_BLOCKS
    head_block = tl.program_id(0) % HEAD_BLOCKS
    tile = tl.program_id(1)
    request = tl.load(tiles + 2 * tile)
    first_token = tl.load(tiles + 2 * tile + 1)
    start = tl.load(starts + request)
    new_len = tl.load(new_lens + request)
    base = tl.load(query_bases + request)
    pool_len = tl.load(pool_lens + request)
    num_keys = pool_len
    if NEW:
        num_keys += new_len

    row = tl.arange(0, BLOCK_M)
    group_head = head_block * HEADS + row % HEADS
    token = first_token + row // HEADS
    is_row = (row < TOKENS * HEADS) & (token < new_len) & (group_head < GROUP)
    # Idle rows repeat the last token, so that what they read exists.
    token = tl.minimum(token, new_len - 1)
    head = kv_head * GROUP + tl.minimum(group_head, GROUP - 1)
    position = base + token
    first_position = base + first_token
    last_position = base + tl.minimum(first_token + TOKENS, new_len) - 1

    # Keys low .. high - 1 are seen by some row of the tile.
    low = 0
    lows = row
    if LOCAL:
        low = _first_visible(first_position, window, CHUNK)
        lows = _first_visible(position, window, CHUNK)
    high = num_keys
    if CAUSAL:
        high = tl.minimum(num_keys, last_position + 1)
    span_start = row
    span_end = row
    if SPANS:
        span_start = tl.load(spans + 2 * (start + token))
        span_end = tl.load(spans + 2 * (start + token) + 1)
        low = tl.minimum(low, tl.min(tl.where(span_end > 0, span_start, num_keys), 0))
        high = tl.minimum(num_keys, tl.maximum(high, tl.max(span_end, 0)))
    mask_rows = row
    if MASK:
        mask_start = tl.load(mask_starts + request).to(tl.int64)
        mask_rows = mask + mask_start + token.to(tl.int64) * num_keys
    # Keys up to here are seen by all rows.
    whole = low
    if not (LOCAL or SPANS or MASK):
        whole = tl.minimum(high, first_position + 1) if CAUSAL else high

    dims = tl.arange(0, BLOCK_D)
    q_row = (start + token).to(tl.int64) * q_stride + head * q_head_stride
    q_rows = q + q_row[:, None]
    if BLOCK_D <= DIM:
        q_main = tl.load(q_rows + dims[None, :])
    else:
        q_main = tl.load(q_rows + dims[None, :], mask=dims[None, :] < DIM, other=0.0)
    q_tail = q_main
    if BLOCK_TAIL > 0:
        tail_dims = BLOCK_D + tl.arange(0, BLOCK_TAIL)
        q_tail = tl.load(q_rows + tail_dims[None, :], mask=tail_dims[None, :] < DIM, other=0.0)

    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if SINKS:
        peak = tl.load(sinks + head).to(tl.float32) * LOG2_E
        total = tl.full([BLOCK_M], 1.0, tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)

    if POOL:
        slots = table + tl.load(rows + request).to(tl.int64) * table_stride
        if OFFSETS:
            slots += tl.load(offsets + request)
        begin = tl.minimum(low, pool_len)
        end = tl.minimum(high, pool_len)
        middle = begin + tl.maximum(tl.minimum(whole, end) - begin, 0) // BLOCK_N * BLOCK_N
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
                pool_k + kv_head.to(tl.int64) * pool_k_head_stride,
                pool_v + kv_head.to(tl.int64) * pool_v_head_stride,
                pool_k_stride,
                pool_v_stride,
                position,
                lows,
                span_start,
                span_end,
                mask_rows,
                pool_scale,
                cap,
                DIM,
                V_DIM,
                BLOCK_D,
                BLOCK_TAIL,
                BLOCK_V,
                BLOCK_N,
                FROM_POOL=True,
                V_IS_K=POOL_V_IS_K,
                MASKED=masked == 1,
                CAUSAL=CAUSAL,
                LOCAL=LOCAL,
                SPANS=SPANS,
                MASK=MASK,
                CAP=CAP,
            )
        acc = acc * v_scale
    if NEW:
        begin = tl.maximum(low, pool_len)
        middle = begin + tl.maximum(tl.minimum(whole, high) - begin, 0) // BLOCK_N * BLOCK_N
        for masked in tl.static_range(2):
            peak, total, acc = attend_range(
                q_main,
                q_tail,
                peak,
                total,
                acc,
                middle if masked else begin,
                high if masked else middle,
                row,
                start - pool_len,
                new_k + kv_head.to(tl.int64) * new_k_head_stride,
                new_v + kv_head.to(tl.int64) * new_v_head_stride,
                new_k_stride,
                new_v_stride,
                position,
                lows,
                span_start,
                span_end,
                mask_rows,
                scale,
                cap,
                DIM,
                V_DIM,
                BLOCK_D,
                BLOCK_TAIL,
                BLOCK_V,
                BLOCK_N,
                FROM_POOL=False,
                V_IS_K=NEW_V_IS_K,
                MASKED=masked == 1,
                CAUSAL=CAUSAL,
                LOCAL=LOCAL,
                SPANS=SPANS,
                MASK=MASK,
                CAP=CAP,
            )

    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    v_dims = tl.arange(0, BLOCK_V)
    out_row = (start + token).to(tl.int64) * NUM_HEADS + head
    tl.store(
        out + out_row[:, None] * V_DIM + v_dims[None, :],
        acc.to(out.dtype.element_ty),
        mask=is_row[:, None] & (v_dims[None, :] < V_DIM),
    )
