"""Products of many rows with the matrices of their experts, one tile of [choices of one expert] x [outputs] for each program.

    out[c] = act(w1[e] x[c / k]) * (w3[e] x[c / k])     first matrix, gate and up rows in one stack [E, 2I, D]
    out[c] = w2[e] h[c]                                 second matrix

Sums are float32. Codes of eight bits are multiplied with codes and scaled at the end (a scale for each output), or turned into numbers
of the rows' dtype and scaled block by block of the sum.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sglang.srt.layers.moe.expert_matrix import ExpertMatrix, Gate
from sglang.srt.layers.moe.tiles import Tile
from sglang.srt.layers.triton_ops.moe.activation import activate
from sglang.srt.layers.triton_ops.moe.sort import Blocks
from sglang.srt.utils.dependent_launch import (
    launch_dependents,
    launch_options,
    wait_for_earlier,
)


def grouped_product(
    rows: torch.Tensor,  # [T, K] or [n, K], of the dtype or codes
    row_scales: torch.Tensor | None,  # float32, one for each row, with codes
    matrix: ExpertMatrix,
    gate: Gate | None,  # None: no activation
    blocks: Blocks,
    num_choices: int,
    dtype: torch.dtype,
    tile: Tile,
) -> torch.Tensor:  # [n, N] of `dtype`
    """Rows of choices that no expert here serves are left as they were found: anything."""
    weight = matrix.weight
    width = weight.shape[2]
    num_out = weight.shape[1] // 2 if gate is not None and gate.is_gated else weight.shape[1]
    out = torch.empty(num_choices, num_out, dtype=dtype, device=rows.device)
    scales = rows if matrix.scale is None else matrix.scale
    block_rows, block_columns = matrix.block_size or (1, 1)
    # A block of the sum lies within a block of the scales.
    block_k = (
        min(tile.block_k, block_columns & -block_columns) if matrix.block_size else tile.block_k
    )
    _grouped_kernel[(blocks.max_blocks * triton.cdiv(num_out, tile.block_n),)](
        rows,
        rows if row_scales is None else row_scales,
        weight,
        scales,
        rows if matrix.bias is None else matrix.bias,
        out,
        blocks.choices,
        blocks.experts,
        blocks.count,
        num_choices,
        rows.stride(0),
        weight.stride(0),
        weight.stride(1),
        scales.stride(0),
        scales.stride(1),
        0 if matrix.bias is None else matrix.bias.stride(0),
        WIDTH=width,
        OUT=num_out,
        CHOICES_PER_ROW=num_choices // max(1, rows.shape[0]),
        SCALES=matrix.kind,
        BLOCK_ROWS=block_rows,
        BLOCK_COLUMNS=block_columns,
        BIAS=matrix.bias is not None,
        ACTIVATION=None if gate is None else gate.activation,
        GATED=gate is not None and gate.is_gated,
        ALPHA=None if gate is None else gate.alpha,
        LIMIT=None if gate is None else gate.limit,
        BLOCK_M=blocks.size,
        BLOCK_N=tile.block_n,
        BLOCK_K=block_k,
        GROUP=tile.group_m,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **launch_options(rows.device),
    )
    return out


@triton.jit
def _multiply(x, w, total, factor, SCALES: tl.constexpr, BLOCK_K: tl.constexpr):
    """`total` with the product of two tiles added."""
    if SCALES == "channel":
        # Units for eight bits keep few bits of a sum: at most BLOCK_K products before float32 takes over.
        return tl.dot(x, w, total, max_num_imprecise_acc=BLOCK_K)
    elif SCALES == "block":
        return total + tl.dot(x, w.to(x.dtype), input_precision="ieee") * factor[None, :]
    else:
        return tl.dot(x, w, total, input_precision="ieee")


@triton.jit
def _finish(
    total,
    row_scales,
    weight_scales,
    bias,
    row,
    output,
    inside,
    SCALES: tl.constexpr,
    BIAS: tl.constexpr,
):
    """Scales of rows and outputs, and the bias; pointers are an expert's."""
    if SCALES == "channel":
        total = total * tl.load(row_scales + row)[:, None]
        total = total * tl.load(weight_scales + output, mask=inside, other=0.0)[None, :]
    if BIAS:
        total += tl.load(bias + output, mask=inside, other=0.0).to(tl.float32)[None, :]
    return total


@triton.jit(do_not_specialize=["num_choices"])
def _grouped_kernel(
    rows,
    row_scales,
    weight,
    weight_scales,
    bias,
    out,
    choices,
    block_experts,
    num_blocks,
    num_choices,
    row_stride,
    expert_stride,
    weight_stride,
    scale_expert_stride,
    scale_stride,
    bias_stride,
    WIDTH: tl.constexpr,
    OUT: tl.constexpr,
    CHOICES_PER_ROW: tl.constexpr,
    SCALES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    PDL: tl.constexpr,
):
    NUM_N: tl.constexpr = (OUT + BLOCK_N - 1) // BLOCK_N
    EVEN_K: tl.constexpr = WIDTH % BLOCK_K == 0
    launch_dependents(PDL)
    wait_for_earlier(PDL)
    used = tl.load(num_blocks)
    program = tl.program_id(0)
    if program >= used * NUM_N:
        return
    # GROUP blocks of choices pass over the outputs together: neighbours mostly have one expert, whose weight stays in the cache.
    first = program // (GROUP * NUM_N) * GROUP
    height = tl.minimum(GROUP, used - first)
    within = program % (GROUP * NUM_N)
    block = first + within % height
    output = within // height * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = output < OUT

    expert = tl.load(block_experts + block).to(tl.int64)
    choice = tl.load(choices + block * BLOCK_M + tl.arange(0, BLOCK_M))
    is_real = choice < num_choices
    # Padding reads the row of the block's first choice again, which costs nothing; what comes of it is not stored.
    substitute = tl.load(choices + block * BLOCK_M)
    row = (tl.where(is_real, choice, substitute) // CHOICES_PER_ROW).to(tl.int64)

    column = tl.arange(0, BLOCK_K)
    # Outputs beyond the last read the last row again.
    safe = tl.minimum(output, OUT - 1)
    x_source = rows + row[:, None] * row_stride + column[None, :]
    w_source = weight + expert * expert_stride + safe[None, :] * weight_stride + column[:, None]
    scale_source = weight_scales + expert * scale_expert_stride
    scale1 = scale_source + safe // BLOCK_ROWS * scale_stride
    scale3 = scale_source + (safe + OUT) // BLOCK_ROWS * scale_stride
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    total_up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    factor = tl.zeros([BLOCK_N], tl.float32)
    factor_up = factor
    for start in range(0, WIDTH, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_source + start)
            w = tl.load(w_source + start)
        else:
            x = tl.load(x_source + start, mask=(start + column < WIDTH)[None, :], other=0.0)
            w = tl.load(w_source + start, mask=(start + column < WIDTH)[:, None], other=0.0)
        if SCALES == "block":
            factor = tl.load(scale1 + start // BLOCK_COLUMNS)
        total = _multiply(x, w, total, factor, SCALES, BLOCK_K)
        if GATED:
            up_source = w_source + OUT * weight_stride + start
            if EVEN_K:
                w = tl.load(up_source)
            else:
                w = tl.load(up_source, mask=(start + column < WIDTH)[:, None], other=0.0)
            if SCALES == "block":
                factor_up = tl.load(scale3 + start // BLOCK_COLUMNS)
            total_up = _multiply(x, w, total_up, factor_up, SCALES, BLOCK_K)

    biases = bias + expert * bias_stride
    total = _finish(total, row_scales, scale_source, biases, row, output, inside, SCALES, BIAS)
    if GATED:
        total_up = _finish(
            total_up, row_scales, scale_source + OUT, biases + OUT, row, output, inside, SCALES, BIAS
        )  # fmt: skip
    if ACTIVATION is not None:
        total = activate(total, total_up, ACTIVATION, GATED, ALPHA, LIMIT, out.dtype.element_ty)
    target = out + choice.to(tl.int64)[:, None] * OUT + output[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=is_real[:, None] & inside[None, :])
