"""The product of one row with a weight, which is nothing but reading the weight: y = x W^T + b.

A matrix product made for many rows reads a small weight at a third of the memory's rate, because too few programs have too few reads
on their way. Here each program reads a few whole rows of the weight in wide pieces, all of them asked for at once, the first ones
while the kernel that makes x still runs.

Of a weight [gate | up] a program may read the same rows of both halves, and end with the activation.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sglang.srt.layers.triton_ops import next_power_of_2
from sglang.srt.layers.triton_ops.gated import activate_and_multiply
from sglang.srt.utils.dependent_launch import (
    launch_dependents,
    launch_options,
    wait_for_earlier,
)

_PIECE = 1024
# Of each thread, for weights that wait for x.
_REGISTERS_AHEAD = 64


def one_row_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """x [1, in], weight [out, in] of the same 16-bit dtype, rows contiguous -> [1, out]. Sums in float32."""
    return _launch(x, weight, bias, weight.shape[0], None)


def one_row_gated_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    """x [1, in], weight [gate | up] [2d, in] -> `act(gate(x)) * up(x)` [1, d], rounded as by the product and `gated_activation` in turn."""
    return _launch(x, weight, bias, weight.shape[0] // 2, activation)


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    num_out: int,
    activation: str | None,
) -> torch.Tensor:
    width = weight.shape[1]
    out = torch.empty(1, num_out, dtype=x.dtype, device=x.device)
    rows, piece, num_warps = _tile(width)
    halves = 1 if activation is None else 2
    outputs = max(1, rows // halves)
    options = launch_options(x.device)
    _one_row_kernel[(triton.cdiv(num_out, outputs),)](
        x,
        weight,
        x if bias is None else bias,
        out,
        num_out,
        weight.stride(0),
        WIDTH=width,
        ROWS=outputs * halves,
        PIECE=piece,
        AHEAD=_columns_ahead(width, outputs * halves, piece, num_warps) if options["PDL"] else 0,
        BIAS=bias is not None,
        ACTIVATION=activation,
        num_warps=num_warps,
        **options,
    )
    return out


def _tile(width: int) -> tuple[int, int, int]:
    """(rows, columns at a time, warps) of a program, from a sweep on an H200.

    One row by eight warps is best or nearly so wherever a row is long or rows are few.
    """
    widest = next_power_of_2(width)
    if width <= 1024:
        return 2, min(_PIECE, widest), 4
    if width > 8192:
        return 2, min(2 * _PIECE, widest), 4
    return 1, min(_PIECE, widest), 8


def _columns_ahead(width: int, rows: int, piece: int, num_warps: int) -> int:
    """How many columns of a program's rows registers hold, in whole pieces. Two weights are in a register."""
    return min(width, 2 * _REGISTERS_AHEAD * 32 * num_warps // (rows * piece) * piece)


@triton.jit
def _load_piece(source, is_row, start, WIDTH: tl.constexpr, PIECE: tl.constexpr):
    """Columns from `start` on of the rows that begin at `source` [ROWS], as [ROWS, PIECE]."""
    column = start + tl.arange(0, PIECE)
    return tl.load(
        source[:, None] + column[None, :],
        mask=is_row[:, None] & (column < WIDTH)[None, :],
        other=0.0,
        eviction_policy="evict_first",
    )


@triton.jit(do_not_specialize=["num_out"])
def _one_row_kernel(
    x,
    weight,
    bias,
    out,
    num_out,
    stride,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    PIECE: tl.constexpr,
    AHEAD: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PDL: tl.constexpr,
):
    """The first AHEAD columns of the weight do not wait for x. With an activation, rows are of gate and up in turn."""
    launch_dependents(PDL)
    line = tl.arange(0, ROWS)
    if ACTIVATION is None:
        row = tl.program_id(0) * ROWS + line
        is_row = row < num_out
    else:
        row = tl.program_id(0) * (ROWS // 2) + line // 2
        is_row = row < num_out
        row += line % 2 * num_out
    source = weight + row.to(tl.int64) * stride
    ahead = ()
    for start in tl.static_range(0, AHEAD, PIECE):
        ahead = ahead + (_load_piece(source, is_row, start, WIDTH, PIECE),)
    if BIAS:
        addend = tl.load(bias + row, mask=is_row, other=0.0)
    wait_for_earlier(PDL)
    total = tl.zeros([ROWS, PIECE], tl.float32)
    for start in tl.static_range(0, WIDTH, PIECE):
        if start < AHEAD:
            w = ahead[start // PIECE]
        else:
            w = _load_piece(source, is_row, start, WIDTH, PIECE)
        column = start + tl.arange(0, PIECE)
        value = tl.load(x + column, mask=column < WIDTH, other=0.0)
        total += w.to(tl.float32) * value.to(tl.float32)[None, :]
    result = tl.sum(total, 1)
    if BIAS:
        result += addend.to(tl.float32)
    result = result.to(out.dtype.element_ty)
    if ACTIVATION is None:
        tl.store(out + row, result, mask=is_row)
    else:
        gate, up = tl.split(tl.reshape(result, [ROWS // 2, 2]))
        value = activate_and_multiply(gate, up, ACTIVATION, out.dtype.element_ty)
        column = tl.program_id(0) * (ROWS // 2) + tl.arange(0, ROWS // 2)
        tl.store(out + column, value, mask=column < num_out)
