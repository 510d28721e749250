"""Copies the tensors of a decode into the buffers that a captured graph reads, and fills the rest with padding."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sglang.srt.utils.dependent_launch import (
    launch_dependents,
    launch_options,
    wait_for_earlier,
)

_BLOCK = 128
# Lines of the buffer.
INPUT_IDS, ROWS, SEQ_LENS, POSITIONS, SLOTS = range(5)
NUM_LINES = 5
# Behind them, for models that turn by three positions: time, height, width.
AXES = slice(NUM_LINES, NUM_LINES + 3)


def fill_graph_inputs(
    buffer: torch.Tensor,
    input_ids: torch.Tensor,
    rows: torch.Tensor,
    seq_lens: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    size: int,
    padding_len: int,
    axes: torch.Tensor | None = None,
) -> None:
    """The first entries of each line of `buffer` int64 [5, N] become the tensors [B] int64, the next ones up to `size`
    padding: token 0, row 0, position 0 and slot 0 (the padding page), `padding_len` keys.

    With `axes` int64 [3, B], whose rows are contiguous, the buffer has eight lines; padding is at position 0 of every axis.
    """
    _fill_kernel[(triton.cdiv(size, _BLOCK),)](
        buffer,
        input_ids,
        rows,
        seq_lens,
        positions,
        slots,
        buffer if axes is None else axes,
        len(input_ids),
        size,
        buffer.stride(0),
        0 if axes is None else axes.stride(0),
        padding_len,
        HAS_AXES=axes is not None,
        BLOCK=_BLOCK,
        num_warps=4,
        **launch_options(buffer.device),
    )


@triton.jit(
    do_not_specialize=["num_real", "size", "axes_stride", "padding_len"],
    do_not_specialize_on_alignment=["input_ids", "rows", "seq_lens", "positions", "slots", "axes"],
)
def _fill_kernel(
    buffer,
    input_ids,
    rows,
    seq_lens,
    positions,
    slots,
    axes,
    num_real,
    size,
    stride,
    axes_stride,
    padding_len,
    HAS_AXES: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    launch_dependents(PDL)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_real, inside = index < num_real, index < size
    target = buffer + index
    wait_for_earlier(PDL)
    tl.store(target, tl.load(input_ids + index, mask=is_real, other=0), mask=inside)
    tl.store(target + stride, tl.load(rows + index, mask=is_real, other=0), mask=inside)
    lens = tl.load(seq_lens + index, mask=is_real, other=0)
    tl.store(target + 2 * stride, tl.where(is_real, lens, padding_len), mask=inside)
    tl.store(target + 3 * stride, tl.load(positions + index, mask=is_real, other=0), mask=inside)
    tl.store(target + 4 * stride, tl.load(slots + index, mask=is_real, other=0), mask=inside)
    if HAS_AXES:
        for axis in tl.static_range(3):
            value = tl.load(axes + axis * axes_stride + index, mask=is_real, other=0)
            tl.store(target + (5 + axis) * stride, value, mask=inside)
