"""FlashInfer's wrappers behind one form: plan for the requests of a step, then run for every layer of a kind.

A plan is made on the host and copied up through memory of the wrapper's own, without a wait. The next plan of the same wrapper waits
until that copy is done, which it is long before, unless the host is a whole step ahead. Legend: T tokens, B requests, H query heads,
K kv heads, d head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sglang.srt.layers.attention.attention_kind import AttentionKind
from sglang.srt.layers.attention.page_index import PagedRequests, PageIndex
from sglang.srt.utils.upload import pinned

# Groups of fewer query heads are decoded without tensor cores.
_TENSOR_CORE_GROUP = 4
_LAYOUT = "NHD"  # pages [pages, page, K, d]


@dataclass(frozen=True)
class GraphBuffers:
    """What the kernels of one captured decode of B requests read, int32 on the device; plans write to it."""

    query_starts: torch.Tensor  # [B + 1]
    starts: torch.Tensor  # [B + 1]
    last_lens: torch.Tensor  # [B]
    lens: torch.Tensor  # [B]
    pages: torch.Tensor  # as many as the requests can have


@dataclass(frozen=True)
class Workspace:
    """Device memory of a wrapper: partial results, and what a plan is copied to. The latter is None for memory of its own."""

    partial: torch.Tensor  # uint8
    plan: torch.Tensor | None = None  # uint8


def make_graph_buffers(size: int, pages: torch.Tensor) -> GraphBuffers:
    """Buffers for `size` requests, the first pages of all being in `pages`."""

    def zeros(count: int) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.int32, device=pages.device)

    return GraphBuffers(zeros(size + 1), zeros(size + 1), zeros(size), zeros(size), pages)


class _Plan:
    """Keeps a plan's memory on the host until it is copied."""

    def __init__(self, kind: AttentionKind, device: torch.device) -> None:
        self.kind = kind
        self._device = device
        self._copied: torch.cuda.Event | None = None

    def _begin(self) -> None:
        if self._copied is not None:
            self._copied.synchronize()

    def _end(self) -> None:
        if self._device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record()


class _PagedPlan(_Plan):
    """A plan over keys and values in pages."""

    _wrapper: Any

    def run(
        self,
        q: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        scales: tuple[float | None, float | None],
    ) -> torch.Tensor:
        """q [T, H, d], paged keys and values -> [T, H, d_v]."""
        return self._wrapper.run(q, cache, k_scale=scales[0], v_scale=scales[1])


class PagedDecode(_PagedPlan):
    """One query per request over the cache."""

    def __init__(
        self,
        kind: AttentionKind,
        page_size: int,
        workspace: Workspace,
        buffers: GraphBuffers | None = None,
    ) -> None:
        import flashinfer

        super().__init__(kind, workspace.partial.device)
        self._page_size = page_size
        self._wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            workspace.partial,
            _LAYOUT,
            use_cuda_graph=buffers is not None,
            use_tensor_cores=kind.num_heads // kind.num_kv_heads >= _TENSOR_CORE_GROUP,
            paged_kv_indptr_buffer=buffers.starts if buffers else None,
            paged_kv_indices_buffer=buffers.pages if buffers else None,
            paged_kv_last_page_len_buffer=buffers.last_lens if buffers else None,
        )
        if workspace.plan is not None:
            self._wrapper.reset_workspace_buffer(workspace.partial, workspace.plan)

    def plan(self, requests: PagedRequests, index: PageIndex) -> None:
        kind = self.kind
        self._begin()
        self._wrapper.plan(
            index.starts_cpu,
            index.pages,
            index.last_lens_cpu,
            kind.num_heads,
            kind.num_kv_heads,
            kind.dim,
            self._page_size,
            window_left=kind.window,
            logits_soft_cap=kind.cap,
            q_data_type=kind.q_dtype,
            kv_data_type=kind.kv_dtype,
            sm_scale=kind.scaling,
        )
        self._end()


class PagedExtend(_PagedPlan):
    """New queries over the cache, in which their own keys are already."""

    def __init__(self, kind: AttentionKind, page_size: int, workspace: Workspace) -> None:
        import flashinfer

        super().__init__(kind, workspace.partial.device)
        self._page_size = page_size
        self._wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace.partial, _LAYOUT)

    def plan(self, requests: PagedRequests, index: PageIndex) -> None:
        kind = self.kind
        self._begin()
        self._wrapper.plan(
            query_starts(requests),
            index.starts_cpu,
            index.pages,
            index.last_lens_cpu,
            kind.num_heads,
            kind.num_kv_heads,
            kind.dim,
            self._page_size,
            head_dim_vo=kind.v_dim,
            causal=True,
            sm_scale=kind.scaling,
            window_left=kind.window,
            logits_soft_cap=kind.cap,
            q_data_type=kind.q_dtype,
            kv_data_type=kind.kv_dtype,
        )
        self._end()


class WholePrompts(_Plan):
    """New queries over their own keys and values, which are all that there are."""

    def __init__(self, kind: AttentionKind, workspace: Workspace) -> None:
        import flashinfer

        super().__init__(kind, workspace.partial.device)
        self._wrapper = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(workspace.partial, _LAYOUT)

    def plan(self, requests: PagedRequests) -> None:
        kind, starts = self.kind, query_starts(requests)
        self._begin()
        self._wrapper.plan(
            starts,
            starts,
            kind.num_heads,
            kind.num_kv_heads,
            kind.dim,
            head_dim_vo=kind.v_dim,
            causal=True,
            sm_scale=kind.scaling,
            window_left=kind.window,
            logits_soft_cap=kind.cap,
            q_data_type=kind.q_dtype,
            kv_data_type=kind.kv_dtype,
        )
        self._end()

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q [T, H, d], k [T, K, d], v [T, K, d_v] -> [T, H, d_v]."""
        return self._wrapper.run(q, k, v)


class LatentAttention(_Plan):
    """New queries, one or more of a request, over a latent cache in which their own keys are already."""

    def __init__(
        self,
        kind: AttentionKind,
        page_size: int,
        workspace: Workspace,
        buffers: GraphBuffers | None = None,
    ) -> None:
        from flashinfer.mla import BatchMLAPagedAttentionWrapper

        super().__init__(kind, workspace.partial.device)
        self._page_size = page_size
        self._wrapper = BatchMLAPagedAttentionWrapper(
            workspace.partial,
            use_cuda_graph=buffers is not None,
            qo_indptr=buffers.query_starts if buffers else None,
            kv_indptr=buffers.starts if buffers else None,
            kv_indices=buffers.pages if buffers else None,
            kv_len_arr=buffers.lens if buffers else None,
        )

    def plan(self, requests: PagedRequests, index: PageIndex) -> None:
        kind = self.kind
        self._begin()
        self._wrapper.plan(
            query_starts(requests),
            index.starts_cpu,
            index.pages,
            index.lens_cpu,
            kind.num_heads,
            kind.v_dim,
            kind.dim - kind.v_dim,
            self._page_size,
            True,
            kind.scaling,
            kind.q_dtype,
            kind.kv_dtype,
        )
        self._end()

    def run(
        self,
        q: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        scales: tuple[float | None, float | None],
    ) -> torch.Tensor:
        """q [T, H, d] and paged keys [pages, page, 1, d] -> [T, H, d_v]; values are a part of the keys."""
        rank, keys = self.kind.v_dim, cache[0].squeeze(2)
        return self._wrapper.run(q[..., :rank], q[..., rank:], keys[..., :rank], keys[..., rank:])


def query_starts(requests: PagedRequests) -> torch.Tensor:
    """int32 [B + 1] on the host: the first row of each request."""
    starts = np.zeros(len(requests.new_lens) + 1, np.int32)
    np.cumsum(requests.new_lens, out=starts[1:])
    return pinned(starts, torch.int32, requests.table.device)
