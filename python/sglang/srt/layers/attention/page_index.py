"""Which pages of the cache the requests of a step read: lists for kernels that want them one behind the other, and tables for
kernels that want a row for each request.

Lengths come from the host, slots stay on the device; nothing here waits for it. Legend: B requests, R rows of the table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sglang.srt.layers.triton_ops import has_triton
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.utils.upload import pinned, upload


@dataclass(frozen=True)
class PagedRequests:
    """The requests of a step. Positions count from the first token of a request."""

    table: torch.Tensor  # int32 [R, W], slots by row and position
    rows: torch.Tensor  # int64 [B]
    lens: np.ndarray  # int64 [B], keys of a request, those of this step included
    new_lens: np.ndarray  # int64 [B], tokens of this step
    page_size: int


@dataclass(frozen=True)
class PageIndex:
    """The pages of all requests. What the name of a field calls "cpu" is on the host, in pinned memory where there is a GPU."""

    starts_cpu: torch.Tensor  # int32 [B + 1], where a request's pages start
    last_lens_cpu: torch.Tensor  # int32 [B], used slots of its last page
    lens_cpu: torch.Tensor  # int32 [B], keys on its pages
    pages: torch.Tensor  # int32 [starts[-1]] on the device


def find_requests(batch: ForwardBatch, table: torch.Tensor, page_size: int) -> PagedRequests:
    """The requests of an eager step."""
    assert batch.seq_lens_cpu is not None and batch.req_pool_indices is not None
    lens = batch.seq_lens_cpu.numpy()
    new_lens = np.ones_like(lens)
    if not batch.forward_mode.is_decode():
        assert batch.extend_seq_lens_cpu is not None, "an extend needs extend_seq_lens_cpu"
        new_lens = np.asarray(batch.extend_seq_lens_cpu, np.int64)
    return PagedRequests(table, batch.req_pool_indices, lens, new_lens, page_size)


def find_graph_requests(
    table: torch.Tensor,
    rows: torch.Tensor,
    lens_cpu: torch.Tensor | None,
    bs: int,
    padding_len: int,
    page_size: int,
) -> PagedRequests:
    """The requests of a captured decode of `bs` requests: the real ones, of which there may be fewer, then padding.

    `rows` int64, at least [bs]; `lens_cpu` int64 of the real ones, None where there are none yet.
    """
    lens = np.full(bs, padding_len, np.int64)
    if lens_cpu is not None:
        real = lens_cpu[:bs].numpy()
        lens[: len(real)] = real
    return PagedRequests(table, rows[:bs], lens, np.ones(bs, np.int64), page_size)


def build_page_index(requests: PagedRequests, window: int = -1) -> PageIndex:
    """The pages that a step reads; of a decode with a `window` only those within it."""
    page = requests.page_size
    firsts = np.zeros_like(requests.lens)
    if window > 0:
        firsts = np.maximum(requests.lens - requests.new_lens - window, 0) // page
    counts = -(-requests.lens // page) - firsts
    size = len(counts)
    bounds = np.zeros((2, size + 1), np.int32)
    np.cumsum(counts, out=bounds[0, 1:])
    bounds[1, :size] = firsts
    lens = requests.lens - firsts * page
    last_lens = np.where(counts > 0, lens - (counts - 1) * page, 0)
    device = requests.table.device
    return PageIndex(
        pinned(bounds[0], torch.int32, device),
        pinned(last_lens, torch.int32, device),
        pinned(lens, torch.int32, device),
        _gather(requests, bounds, counts),
    )


def build_page_table(requests: PagedRequests, width: int | None = None) -> torch.Tensor:
    """Pages by request, int32 [B, width], `width` being enough for the longest request if None.

    Behind the last page of a request stands what is there in the row table.
    """
    page = requests.page_size
    width = -(-int(requests.lens.max()) // page) if width is None else width
    slots = requests.table[:, : width * page : page].index_select(0, requests.rows)
    return slots if page == 1 else slots // page


def _gather(requests: PagedRequests, bounds: np.ndarray, counts: np.ndarray) -> torch.Tensor:
    table, total = requests.table, int(bounds[0, -1])
    if table.is_cuda and has_triton():
        from sglang.srt.layers.attention.triton_ops.pages import gather_pages

        pages = torch.empty(total, dtype=torch.int32, device=table.device)
        most = max(1, int(counts.max(initial=0)))
        uploaded = upload(bounds, torch.int32, table.device)
        gather_pages(table, requests.rows, uploaded, requests.page_size, most, pages)
        return pages
    return gather_in_torch(requests, bounds, counts)


def gather_in_torch(
    requests: PagedRequests, bounds: np.ndarray, counts: np.ndarray
) -> torch.Tensor:
    """The same as `gather_pages`, where there is no Triton."""
    table, total = requests.table, int(bounds[0, -1])
    # Page `index - starts + firsts` of its request.
    index = np.arange(total) + np.repeat(bounds[1, :-1] - bounds[0, :-1], counts)
    owners = np.repeat(np.arange(len(counts)), counts)
    rows = requests.rows[upload(owners, torch.int64, table.device)]
    positions = upload(index * requests.page_size, torch.int64, table.device)
    return table[rows, positions] // requests.page_size
