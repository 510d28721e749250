"""Eight-bit floating point in one launch each: rounding rows, writing to the cache, expanding weights with a scale per block."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sglang.srt.layers.triton_ops import next_power_of_2

_MAX_BLOCK = 4096
# Of rows that are all zero, whose scale would be zero.
_LEAST_MAGNITUDE = tl.constexpr(1e-12)
_EXPAND_ROWS, _EXPAND_COLUMNS = 16, 128


def round_rows_kernel(
    x: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [T, K] of rows [T, K] whose elements lie side by side, and scales float32 [T, 1]: each row's own, or `scale` [1] for all."""
    num_rows, width = x.shape
    codes = torch.empty(num_rows, width, dtype=dtype, device=x.device)
    scales = torch.empty(num_rows, 1, dtype=torch.float32, device=x.device)
    if num_rows:
        block = min(_MAX_BLOCK, next_power_of_2(width))
        _round_rows_kernel[(num_rows,)](
            x,
            scales if scale is None else scale,
            codes,
            scales,
            x.stride(0),
            width,
            torch.finfo(dtype).max,
            GIVEN=scale is not None,
            BLOCK=block,
            num_warps=4 if block <= 1024 else 8,
        )
    return codes, scales


def store_codes_kernel(
    values: torch.Tensor, buffer: torch.Tensor, slots: torch.Tensor, scale: float
) -> None:
    """Write `values / scale`, rounded, [T, ...] to the rows `slots` [T] of `buffer` [S, ...], whose rows are contiguous."""
    rows = values.flatten(1)
    num_rows, width = rows.shape
    if not num_rows:
        return
    block = min(_MAX_BLOCK, next_power_of_2(width))
    _store_codes_kernel[(num_rows, triton.cdiv(width, block))](
        rows,
        buffer,
        slots,
        scale,
        rows.stride(0),
        rows.stride(1),
        buffer.stride(0),
        width,
        torch.finfo(buffer.dtype).max,
        BLOCK=block,
        num_warps=max(1, min(8, block // 256)),
    )


def expand_blocks_kernel(
    weight: torch.Tensor, scales: torch.Tensor, block_size: list[int], dtype: torch.dtype
) -> torch.Tensor:
    """`weight` codes [N, K] times the scale of each block, float32 [ceil(N / rows), ceil(K / columns)], rounded once to `dtype`."""
    rows, columns = weight.shape
    out = torch.empty(rows, columns, dtype=dtype, device=weight.device)
    grid = (triton.cdiv(rows, _EXPAND_ROWS), triton.cdiv(columns, _EXPAND_COLUMNS))
    _expand_kernel[grid](
        weight,
        scales,
        out,
        rows,
        columns,
        weight.stride(0),
        weight.stride(1),
        scales.stride(0),
        scales.stride(1),
        block_size[0],
        block_size[1],
        ROWS=_EXPAND_ROWS,
        COLUMNS=_EXPAND_COLUMNS,
        num_warps=4,
    )
    return out


@triton.jit
def _to_code(value, scale, largest):
    """In the range of codes; what is no number stays so."""
    value = tl.div_rn(value, scale)
    value = tl.minimum(value, largest, propagate_nan=tl.PropagateNan.ALL)
    return tl.maximum(value, -largest, propagate_nan=tl.PropagateNan.ALL)


@triton.jit(do_not_specialize=["largest"])
def _round_rows_kernel(
    x,
    given,
    codes,
    scales,
    x_stride,
    width,
    largest,
    GIVEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    if GIVEN:
        scale = tl.load(given)
    else:
        most = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, width, BLOCK):
            column = start + tl.arange(0, BLOCK)
            value = tl.load(x + row * x_stride + column, mask=column < width, other=0.0)
            most = tl.maximum(most, tl.abs(value.to(tl.float32)), propagate_nan=tl.PropagateNan.ALL)
        top = tl.maximum(tl.max(most, axis=0), _LEAST_MAGNITUDE)
        scale = tl.div_rn(top, largest)
    tl.store(scales + row, scale)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        value = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
        code = _to_code(value, scale, largest)
        tl.store(codes + row * width + column, code.to(codes.dtype.element_ty), mask=inside)


@triton.jit(
    do_not_specialize=["scale", "largest"],
    # A piece of an upload: where it begins depends on the number of tokens.
    do_not_specialize_on_alignment=["slots"],
)
def _store_codes_kernel(
    values,
    buffer,
    slots,
    scale,
    row_stride,
    column_stride,
    buffer_stride,
    width,
    largest,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    slot = tl.load(slots + row).to(tl.int64)
    source = values + row * row_stride + column * column_stride
    value = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    code = _to_code(value, scale, largest)
    tl.store(buffer + slot * buffer_stride + column, code.to(buffer.dtype.element_ty), mask=inside)


@triton.jit
def _expand_kernel(
    weight,
    scales,
    out,
    num_rows,
    num_columns,
    weight_row_stride,
    weight_column_stride,
    scale_row_stride,
    scale_column_stride,
    block_rows,
    block_columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < num_rows) & (column < num_columns)
    codes = tl.load(
        weight + row * weight_row_stride + column * weight_column_stride, mask=inside, other=0.0
    )
    scale = tl.load(
        scales
        + row // block_rows * scale_row_stride
        + column // block_columns * scale_column_stride,
        mask=inside,
        other=0.0,
    )
    value = codes.to(tl.float32) * scale
    tl.store(out + row * num_columns + column, value.to(out.dtype.element_ty), mask=inside)
