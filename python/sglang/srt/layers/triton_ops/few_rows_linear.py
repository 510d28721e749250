"""The product of 2 to 128 rows with a weight: y = x W^T + b, read at the memory's rate.

A program goes through `chunk` pieces of the weight, [outputs, inputs] each, along the inputs and then to the next tile of outputs.
Where several programs share a tile, each leaves its part of the sum in memory, and the one that comes last adds the parts up in
their order: whatever order the programs run in, equal inputs have equal results. Counters of parts belong to the device. They are
zero between launches, so launches on a device must follow each other, as in one stream.
Launched while the kernel before still runs (`dependent_launch`), a program asks for its first part of the weight, then waits for the rows.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from sglang.srt.layers.few_rows_tiles import MAX_COUNTERS, Tile, block_rows
from sglang.srt.utils.dependent_launch import (
    launch_dependents,
    launch_options,
    wait_for_earlier,
)

# Bytes of the weight that a program asks for before the rows are there.
_EARLY_BYTES = 32 << 10


def few_rows_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tile: Tile
) -> torch.Tensor:
    """x [rows, in], weight [out, in] of the same 16-bit dtype, inputs in one piece -> [rows, out].

    Sums in float32, of which the bias is part; one rounding.
    """
    num_rows, (num_out, width) = x.shape[0], weight.shape
    out = torch.empty(num_rows, num_out, dtype=x.dtype, device=x.device)
    block_m, pieces = block_rows(num_rows), tile.pieces(width)
    num_tiles, num_programs = tile.num_tiles(num_out), tile.num_programs(num_out, width)
    parts, counters = out, out
    if tile.is_split(width):
        assert num_tiles <= MAX_COUNTERS, f"{num_tiles} tiles of outputs, at most {MAX_COUNTERS}"
        size = (num_programs + num_tiles) * block_m * tile.block_n
        parts = torch.empty(size, dtype=torch.float32, device=x.device)
        counters = _counters(x.device)
    _few_rows_kernel[(num_programs,)](
        x,
        weight,
        x if bias is None else bias,
        out,
        parts,
        counters,
        num_rows,
        num_out,
        x.stride(0),
        weight.stride(0),
        WIDTH=width,
        PIECES=pieces,
        CHUNK=tile.chunk,
        SWAPPED=tile.is_swapped,
        BIAS=bias is not None,
        BLOCK_M=block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        EARLY=_early(tile, width),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **launch_options(x.device),
    )
    return out


def _early(tile: Tile, width: int) -> int:
    """Inputs of each output that a program asks for early, a power of two. The kernel leaves out fewer than 32, one 64-byte ask."""
    inputs = min(_EARLY_BYTES // (2 * tile.block_n), tile.chunk * tile.block_k, width)
    return 1 << (inputs.bit_length() - 1)


@functools.cache
def _counters(device: torch.device) -> torch.Tensor:
    """Programs that have left their part of a tile, for each tile. The last program of a tile sets its counter to zero again."""
    return torch.zeros(MAX_COUNTERS, dtype=torch.int32, device=device)


@triton.jit(do_not_specialize=["num_rows"])
def _few_rows_kernel(
    x,
    weight,
    bias,
    out,
    parts,
    counters,
    num_rows,
    num_out,
    x_stride,
    weight_stride,
    WIDTH: tl.constexpr,
    PIECES: tl.constexpr,
    CHUNK: tl.constexpr,
    SWAPPED: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EARLY: tl.constexpr,
    PDL: tl.constexpr,
):
    launch_dependents(PDL)
    begin = tl.program_id(0) * CHUNK
    if PDL and EARLY >= 32:
        output = begin // PIECES * BLOCK_N + tl.arange(0, BLOCK_N)
        source = _rows_of(weight, output, num_out, weight_stride)
        _ask_for(source, begin % PIECES * BLOCK_K, WIDTH, EARLY // 32)
    wait_for_earlier(PDL)
    row = tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_K)
    # Padding reads the last row again; what comes of it is not stored.
    x_source = x + tl.minimum(row, num_rows - 1).to(tl.int64)[:, None] * x_stride + column[None, :]
    if PIECES % CHUNK == 0:
        tile = begin // PIECES
        output = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        w_source = _rows_of(weight, output, num_out, weight_stride) + column[None, :]
        total = _multiply(
            x_source, w_source, column, begin % PIECES, CHUNK, WIDTH, SWAPPED, BLOCK_M, BLOCK_N, BLOCK_K
        )  # fmt: skip
        _finish(
            total, bias, out, parts, counters, tile, row, output, num_rows, num_out,
            PIECES, CHUNK, SWAPPED, BIAS, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    else:
        end = tl.minimum(begin + CHUNK, tl.cdiv(num_out, BLOCK_N) * PIECES)
        for tile in range(begin // PIECES, (end - 1) // PIECES + 1):
            output = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            w_source = _rows_of(weight, output, num_out, weight_stride) + column[None, :]
            first = tl.maximum(begin - tile * PIECES, 0)
            count = tl.minimum(end - tile * PIECES, PIECES) - first
            total = _multiply(
                x_source, w_source, column, first, count, WIDTH, SWAPPED, BLOCK_M, BLOCK_N, BLOCK_K
            )  # fmt: skip
            _finish(
                total, bias, out, parts, counters, tile, row, output, num_rows, num_out,
                PIECES, CHUNK, SWAPPED, BIAS, BLOCK_M, BLOCK_N,
            )  # fmt: skip


@triton.jit
def _rows_of(weight, output, num_out, stride):
    """Outputs beyond the last read the last row again."""
    return weight + tl.minimum(output, num_out - 1).to(tl.int64)[:, None] * stride


@triton.jit
def _ask_for(source, start, WIDTH: tl.constexpr, COUNT: tl.constexpr):
    """Brings COUNT times 64 bytes of each row at `source`, from the input `start` on, into the cache of the device."""
    place = tl.minimum(start + tl.arange(0, COUNT) * 32, WIDTH - 1)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [(source + place[None, :]).to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _multiply(
    x_source,
    w_source,
    column,
    first,
    count,
    WIDTH: tl.constexpr,
    SWAPPED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The sum over `count` pieces from the `first` on: [rows, outputs], or swapped [outputs, rows]."""
    if SWAPPED:
        total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    else:
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for i in range(0, count):
        start = (first + i) * BLOCK_K
        if WIDTH % BLOCK_K == 0:
            x = tl.load(x_source + start)
            w = tl.load(w_source + start, eviction_policy="evict_first")
        else:
            inside = (start + column < WIDTH)[None, :]
            x = tl.load(x_source + start, mask=inside, other=0.0)
            w = tl.load(w_source + start, mask=inside, other=0.0, eviction_policy="evict_first")
        if SWAPPED:
            total = tl.dot(w, tl.trans(x), total)
        else:
            total = tl.dot(x, tl.trans(w), total)
    return total


@triton.jit
def _finish(
    total,
    bias,
    out,
    parts,
    counters,
    tile,
    row,
    output,
    num_rows,
    num_out,
    PIECES: tl.constexpr,
    CHUNK: tl.constexpr,
    SWAPPED: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Stores a whole sum, or leaves a part of it and, if it is the last, stores the sum of all parts."""
    if CHUNK % PIECES == 0:
        _store(total, bias, out, row, output, num_rows, num_out, SWAPPED, BIAS)
    else:
        # Programs and tiles follow each other, so the number of both is of one part alone.
        first = tile * PIECES // CHUNK
        num_parts = (tile * PIECES + PIECES - 1) // CHUNK - first + 1
        MOST: tl.constexpr = PIECES // CHUNK if PIECES % CHUNK == 0 else (PIECES - 2) // CHUNK + 2
        if num_parts == 1:
            _store(total, bias, out, row, output, num_rows, num_out, SWAPPED, BIAS)
        else:
            if SWAPPED:
                place = row[None, :] * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
                is_row = row[None, :] < num_rows
            else:
                place = row[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
                is_row = row[:, None] < num_rows
            part = parts + (first + tile).to(tl.int64) * (BLOCK_M * BLOCK_N)
            mine = parts + (tl.program_id(0) + tile).to(tl.int64) * (BLOCK_M * BLOCK_N)
            tl.store(mine + place, total, mask=is_row)
            # All of the program's parts are written before its one thread says so.
            tl.debug_barrier()
            arrived = tl.atomic_add(counters + tile, 1, sem="acq_rel")
            if arrived == num_parts - 1:
                whole = tl.zeros_like(total)
                for i in tl.static_range(0, MOST):
                    # Not from this processor's own cache, which does not know what others wrote.
                    whole += tl.load(
                        part + i * (BLOCK_M * BLOCK_N) + place,
                        mask=is_row & (place * 0 + i < num_parts),
                        other=0.0,
                        cache_modifier=".cg",
                    )
                _store(whole, bias, out, row, output, num_rows, num_out, SWAPPED, BIAS)
                tl.store(counters + tile, 0)


@triton.jit
def _store(
    total, bias, out, row, output, num_rows, num_out, SWAPPED: tl.constexpr, BIAS: tl.constexpr
):
    if BIAS:
        added = tl.load(bias + output, mask=output < num_out, other=0.0).to(tl.float32)
        total += added[:, None] if SWAPPED else added[None, :]
    if SWAPPED:
        target = out + row.to(tl.int64)[None, :] * num_out + output[:, None]
        inside = (row < num_rows)[None, :] & (output < num_out)[:, None]
    else:
        target = out + row.to(tl.int64)[:, None] * num_out + output[None, :]
        inside = (row < num_rows)[:, None] & (output < num_out)[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=inside)
