"""Experts of a few tokens, each choice by itself: nothing but reading the chosen weights, in two launches.

    h[c] = act(w1[e] x[c / k]) * (w3[e] x[c / k]);   y[t] = sum over the choices c of t of  weight[c] * w2[e] h[c]

No sorting, no tiles for matrix units, no sum afterwards. A program has a few lines, each a row of a weight and what it is multiplied with:
the same rows of gate and up, or of all choices of a token, so that many reads are on their way before the first is needed. An expert that
two tokens chose is read twice, so this is for few tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from sglang.srt.layers.moe.expert_matrix import ExpertMatrix, Gate
from sglang.srt.layers.moe.tiles import Tile
from sglang.srt.layers.triton_ops import next_power_of_2
from sglang.srt.layers.triton_ops.moe.activation import activate
from sglang.srt.layers.triton_ops.moe.total import Share
from sglang.srt.utils.dependent_launch import (
    launch_dependents,
    launch_options,
    wait_for_earlier,
)


def single_first(
    rows: torch.Tensor,  # [T, D] or [n, D], of the dtype or codes
    row_scales: torch.Tensor | None,  # float32, one for each row, with codes
    matrix: ExpertMatrix,
    gate: Gate,
    ids: torch.Tensor,  # int32 [T, k]
    dtype: torch.dtype,
    tile: Tile,
) -> torch.Tensor:  # [n, I]
    """Rows of choices that no expert here serves are left as they were found: anything."""
    num_choices = ids.numel()
    num_out = matrix.weight.shape[1] // (2 if gate.is_gated else 1)
    out = torch.empty(num_choices, num_out, dtype=dtype, device=rows.device)
    _first_kernel[(triton.cdiv(num_out, tile.block_n), num_choices)](
        rows,
        rows if row_scales is None else row_scales,
        matrix.weight,
        rows if matrix.scale is None else matrix.scale,
        rows if matrix.bias is None else matrix.bias,
        ids,
        out,
        rows.stride(0),
        *_strides(matrix),
        OUT=num_out,
        CHOICES_PER_ROW=num_choices // max(1, rows.shape[0]),
        ACTIVATION=gate.activation,
        GATED=gate.is_gated,
        ALPHA=gate.alpha,
        LIMIT=gate.limit,
        **_constants(matrix, tile),
        **launch_options(rows.device),
    )
    return out


def single_second(
    rows: torch.Tensor,  # [n, I], of the dtype or codes
    row_scales: torch.Tensor | None,
    matrix: ExpertMatrix,
    ids: torch.Tensor,  # int32 [T, k]
    share: Share,
    dtype: torch.dtype,
    tile: Tile,
) -> torch.Tensor:  # [T, D]
    num_tokens, top_k = ids.shape
    num_out = matrix.weight.shape[1]
    out = torch.empty(num_tokens, num_out, dtype=dtype, device=rows.device)
    _second_kernel[(triton.cdiv(num_out, tile.block_n), num_tokens)](
        rows,
        rows if row_scales is None else row_scales,
        matrix.weight,
        rows if matrix.scale is None else matrix.scale,
        rows if matrix.bias is None else matrix.bias,
        ids,
        rows if share.weights is None else share.weights,
        out,
        rows.stride(0),
        *_strides(matrix),
        share.factor,
        OUT=num_out,
        TOP_K=top_k,
        SLOTS=next_power_of_2(top_k),
        WEIGHTS=share.weights is not None,
        **_constants(matrix, tile),
        **launch_options(rows.device),
    )
    return out


def _strides(matrix: ExpertMatrix) -> tuple[int, ...]:
    weight, scale, bias = matrix.weight, matrix.scale, matrix.bias
    return (
        weight.stride(0),
        weight.stride(1),
        0 if scale is None else scale.stride(0),
        0 if scale is None else scale.stride(1),
        0 if bias is None else bias.stride(0),
    )


def _constants(matrix: ExpertMatrix, tile: Tile) -> dict[str, Any]:
    block_rows, block_columns = matrix.block_size or (1, 1)
    # A piece lies within a block of the scales.
    widest = tile.block_k if matrix.block_size is None else block_columns & -block_columns
    return dict(
        EXPERTS=matrix.weight.shape[0],
        WIDTH=matrix.weight.shape[2],
        SCALES=matrix.kind,
        BLOCK_ROWS=block_rows,
        BLOCK_COLUMNS=block_columns,
        BIAS=matrix.bias is not None,
        ROWS=tile.block_n,
        PIECE=min(tile.block_k, widest),
        num_warps=tile.num_warps,
    )


@triton.jit
def _line_sums(
    x,
    w,
    scales,
    is_line,
    WIDTH: tl.constexpr,
    SCALES: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    LINES: tl.constexpr,
    PIECE: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Products [LINES] of the rows that begin at w [LINES] with those at x [LINES], or with one for all (SHARED); zero, and nothing is
    read of w, where not `is_line` [LINES]. `scales` [LINES]: where the scales of a line's blocks begin."""
    column = tl.arange(0, PIECE)
    total = tl.zeros([LINES, PIECE], tl.float32)
    for start in tl.static_range(0, WIDTH, PIECE):
        inside = start + column < WIDTH
        mask = is_line[:, None] & inside[None, :]
        codes = tl.load(
            w[:, None] + (start + column)[None, :],
            mask=mask,
            other=0.0,
            eviction_policy="evict_first",
        )
        if SHARED:
            value = tl.load(x + start + column, mask=inside, other=0.0).to(tl.float32)[None, :]
        else:
            value = tl.load(x[:, None] + (start + column)[None, :], mask=mask, other=0.0)
            value = value.to(tl.float32)
        part = codes.to(tl.float32) * value
        if SCALES == "block":
            part *= tl.load(scales + start // BLOCK_COLUMNS, mask=is_line, other=0.0)[:, None]
        total += part
    return tl.sum(total, 1)


@triton.jit
def _first_kernel(
    rows,
    row_scales,
    weight,
    weight_scales,
    bias,
    ids,
    out,
    row_stride,
    expert_stride,
    weight_stride,
    scale_expert_stride,
    scale_stride,
    bias_stride,
    OUT: tl.constexpr,
    CHOICES_PER_ROW: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    SCALES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    PIECE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Lines: gate and up of one output side by side."""
    HALVES: tl.constexpr = 2 if GATED else 1
    launch_dependents(PDL)
    # Which rows of the weights are read follows from the choices.
    wait_for_earlier(PDL)
    choice = tl.program_id(1)
    expert = tl.load(ids + choice).to(tl.int64)
    if (expert < 0) | (expert >= EXPERTS):
        return
    row = (choice // CHOICES_PER_ROW).to(tl.int64)
    line = tl.arange(0, HALVES * ROWS)
    output = tl.program_id(0) * ROWS + line // HALVES
    is_line = output < OUT
    output = output + line % HALVES * OUT
    x = rows + row * row_stride
    total = _line_sums(
        x if SCALES == "plain" else x + 0 * line,
        weight + expert * expert_stride + output * weight_stride,
        weight_scales + expert * scale_expert_stride + output // BLOCK_ROWS * scale_stride,
        is_line,
        WIDTH,
        SCALES,
        BLOCK_COLUMNS,
        HALVES * ROWS,
        PIECE,
        SCALES == "plain",
    )
    if SCALES == "channel":
        total = total * tl.load(row_scales + row)
        scales = weight_scales + expert * scale_expert_stride + output
        total = total * tl.load(scales, mask=is_line, other=0.0)
    if BIAS:
        biases = bias + expert * bias_stride + output
        total += tl.load(biases, mask=is_line, other=0.0).to(tl.float32)
    if GATED:
        gate, up = tl.split(tl.reshape(total, [ROWS, 2]))
    else:
        gate, up = total, total
    value = activate(gate, up, ACTIVATION, GATED, ALPHA, LIMIT, out.dtype.element_ty)
    column = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    target = out + choice.to(tl.int64) * OUT + column
    tl.store(target, value.to(out.dtype.element_ty), mask=column < OUT)


@triton.jit(do_not_specialize=["factor"])
def _second_kernel(
    rows,
    row_scales,
    weight,
    weight_scales,
    bias,
    ids,
    shares,
    out,
    row_stride,
    expert_stride,
    weight_stride,
    scale_expert_stride,
    scale_stride,
    bias_stride,
    factor,
    OUT: tl.constexpr,
    TOP_K: tl.constexpr,
    SLOTS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    SCALES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    PIECE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Lines: the same outputs of all choices of a token."""
    launch_dependents(PDL)
    token = tl.program_id(1).to(tl.int64)
    line = tl.arange(0, SLOTS * ROWS)
    slot = line // ROWS
    output = tl.program_id(0) * ROWS + line % ROWS
    choice = token * TOP_K + slot
    wait_for_earlier(PDL)
    expert = tl.load(ids + choice, mask=slot < TOP_K, other=-1).to(tl.int64)
    is_line = (output < OUT) & (expert >= 0) & (expert < EXPERTS)
    expert = tl.where(is_line, expert, 0)
    total = _line_sums(
        rows + choice * row_stride,
        weight + expert * expert_stride + output * weight_stride,
        weight_scales + expert * scale_expert_stride + output // BLOCK_ROWS * scale_stride,
        is_line,
        WIDTH,
        SCALES,
        BLOCK_COLUMNS,
        SLOTS * ROWS,
        PIECE,
        False,
    )
    if SCALES == "channel":
        total = total * tl.load(row_scales + choice, mask=is_line, other=0.0)
        scales = weight_scales + expert * scale_expert_stride + output
        total = total * tl.load(scales, mask=is_line, other=0.0)
    if BIAS:
        biases = bias + expert * bias_stride + output
        total += tl.load(biases, mask=is_line, other=0.0).to(tl.float32)
    total = total.to(out.dtype.element_ty).to(tl.float32)
    if WEIGHTS:
        total *= tl.load(shares + choice, mask=is_line, other=0.0)
    total = tl.sum(tl.reshape(total, [SLOTS, ROWS]), 0) * factor
    column = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tl.store(out + token * OUT + column, total.to(out.dtype.element_ty), mask=column < OUT)
