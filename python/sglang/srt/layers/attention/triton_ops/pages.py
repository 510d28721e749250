"""Collects the pages of requests out of the row table, one list behind the other, in one kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 1024


def gather_pages(
    table: torch.Tensor,
    rows: torch.Tensor,
    bounds: torch.Tensor,
    page_size: int,
    most_pages: int,
    pages: torch.Tensor,
) -> None:
    """Write the pages of every request to `pages` int32 [N].

    `table` int32 [R, W] holds slots by row and position, `rows` int64 [B] the requests' rows. `bounds` int32 [2, B + 1]:
    where a request's pages start in `pages` (the last entry is N), and the first page of a request that is wanted.
    `most_pages` is the largest number of pages of one request.
    """
    grid = (len(rows), triton.cdiv(most_pages, _BLOCK))
    _gather_kernel[grid](
        table,
        rows,
        bounds,
        pages,
        table.stride(0),
        bounds.stride(0),
        PAGE=page_size,
        BLOCK=_BLOCK,
        num_warps=4,
    )


@triton.jit(
    do_not_specialize=["bounds_stride"],
    # Rows and bounds are pieces of one upload, pages of a buffer: where they begin depends on the requests.
    do_not_specialize_on_alignment=["rows", "bounds", "pages"],
)
def _gather_kernel(
    table, rows, bounds, pages, table_stride, bounds_stride, PAGE: tl.constexpr, BLOCK: tl.constexpr
):
    request = tl.program_id(0)
    start = tl.load(bounds + request)
    count = tl.load(bounds + request + 1) - start
    first = tl.load(bounds + bounds_stride + request)
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    row = tl.load(rows + request).to(tl.int64)
    positions = (first + index).to(tl.int64) * PAGE
    slots = tl.load(table + row * table_stride + positions, mask=inside, other=0)
    tl.store(pages + start + index, slots // PAGE, mask=inside)
