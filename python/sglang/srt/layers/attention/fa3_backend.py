"""Attention by FlashAttention 3 from the package sglang-kernel, for Hopper GPUs. Kernels read a table of pages; how they share keys is planned on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from sglang.srt.layers.attention.attention_kind import AttentionKind
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.attention.packaged_backend import PackagedAttnBackend, PackagedStep
from sglang.srt.layers.attention.page_index import PagedRequests, build_page_table
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.utils.upload import upload, upload_into

_DTYPES = (torch.float16, torch.bfloat16)
_MAX_DIM = 256
_DIM_MULTIPLE = 8
# The longest pages that kernels are told of. Where a page holds a tile of keys (64 and more) they may read it as a whole, with the values that
# stand behind the end of a request: what an earlier one left there. From shorter pages they read what they are to read.
_MAX_PAGE = 32


def kernel_page_size(page_size: int) -> int:
    """Slots of the pages that kernels read: the cache's, or equal parts of them."""
    return next(size for size in range(_MAX_PAGE, 0, -1) if page_size % size == 0)


@dataclass
class Fa3Step(PackagedStep):
    """A step with what its kernels read, int32 on the device."""

    lens: torch.Tensor | None = None  # [B], keys of each request
    query_starts: torch.Tensor | None = None  # [B + 1]
    pages: torch.Tensor | None = None  # [B, W]
    max_new: int = 1
    # By kind: the first layer that asked for it, and how programs share the keys.
    schedules: dict[AttentionKind, tuple[int, torch.Tensor]] = field(default_factory=dict)


class Fa3AttnBackend(PackagedAttnBackend[Fa3Step]):
    """See `PackagedAttnBackend`."""

    name = "fa3"

    def __init__(
        self, table: torch.Tensor, page_size: int, create_other: Callable[[], AttentionBackend]
    ) -> None:
        from sgl_kernel import flash_attn

        super().__init__(table, kernel_page_size(page_size), create_other)
        self._over_cache: Callable[..., torch.Tensor] = flash_attn.flash_attn_with_kvcache
        self._over_prompts: Callable[..., torch.Tensor] = flash_attn.flash_attn_varlen_func
        self._plan: Callable[..., torch.Tensor] = flash_attn.get_scheduler_metadata
        self._graph_pages: torch.Tensor | None = None

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Graphs of all sizes share one table of pages, wide enough for any length: one runs at a time."""
        super().init_cuda_graph_state(max_bs, max_num_tokens)
        width = -(-self.table.shape[1] // self.page_size)
        self._graph_pages = torch.zeros(max_bs, width, dtype=torch.int32, device=self.device)

    def make_step(
        self, requests: PagedRequests | None, is_decode: bool, graph_size: int | None = None
    ) -> Fa3Step:
        step = Fa3Step(requests=requests, is_decode=is_decode, graph_size=graph_size)
        if requests is None:
            return step
        size = len(requests.lens)
        bounds = np.zeros((2, size + 1), np.int32)
        bounds[0, :size] = requests.lens
        np.cumsum(requests.new_lens, out=bounds[1, 1:])
        lens, step.query_starts = upload(bounds, torch.int32, self.device).unbind()
        step.lens = lens[:size]
        step.max_new = int(requests.new_lens.max())
        if graph_size is not None:
            assert self._graph_pages is not None, "init_cuda_graph_state was not called"
            step.pages = self._graph_pages[:graph_size]
            self.update_step(step)
        return step

    def update_step(self, step: Fa3Step) -> None:
        assert step.requests is not None and step.lens is not None and step.pages is not None
        upload_into(step.lens, step.requests.lens)
        pages = build_page_table(step.requests)
        step.pages[:, : pages.shape[1]] = pages

    @staticmethod
    def why_no_kernel(kind: AttentionKind, has_sinks: bool, is_prompts: bool) -> str | None:
        if kind.q_dtype not in _DTYPES:
            return f"queries in {kind.q_dtype}"
        if kind.is_fp8:
            return "a cache in fp8"
        if kind.is_latent:
            return None
        dims = (kind.dim, kind.v_dim)
        is_wide = 128 < kind.dim <= 192 and 96 < kind.v_dim <= 128
        has_kernel = is_wide or (kind.dim == kind.v_dim and kind.dim <= _MAX_DIM)
        if not has_kernel or any(dim % _DIM_MULTIPLE for dim in dims):
            return f"head dims {kind.dim} and {kind.v_dim}"
        if not is_prompts and not kind.has_cache:
            return "a cache of another shape than the layer's keys and values"
        return None

    def attend_prompts(
        self,
        step: Fa3Step,
        kind: AttentionKind,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        starts, most = step.query_starts, step.max_new
        return self._over_prompts(q, k, v, starts, starts, most, most, **_options(kind, sinks))

    def attend_cache(
        self,
        step: Fa3Step,
        kind: AttentionKind,
        q: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        layer: RadixAttention,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        keys, values = cache
        options = _options(kind, sinks)
        if kind.is_latent:
            # The kernel takes the rotated part as queries and keys, the latent as values and as queries over them.
            rank = kind.v_dim
            keys, values = keys[..., rank:], keys[..., :rank]
            q, options["qv"] = q[..., rank:], q[..., :rank]
        if step.pages is None:
            assert step.requests is not None, "the step has no requests"
            step.pages = build_page_table(step.requests)
        if not kind.is_latent:
            options["scheduler_metadata"] = self._schedule(step, kind, layer.layer_id)
        return self._over_cache(
            q,
            keys,
            values,
            cache_seqlens=step.lens,
            page_table=step.pages,
            cu_seqlens_q=step.query_starts,
            max_seqlen_q=step.max_new,
            **options,
        )

    def _schedule(self, step: Fa3Step, kind: AttentionKind, layer_id: int) -> torch.Tensor:
        """How the programs of an attention share its keys, for all layers of a kind: a kernel of its own, which each layer would launch.

        The layer that made it makes it anew: then the step runs again, to be captured, and the graph must hold the kernel.
        """
        first, schedule = step.schedules.get(kind, (layer_id, None))
        if schedule is None or first == layer_id:
            assert step.lens is not None and step.pages is not None
            schedule = self._plan(
                len(step.lens),
                step.max_new,
                step.pages.shape[1] * self.page_size,
                kind.num_heads,
                kind.num_kv_heads,
                kind.dim,
                step.lens,
                qkv_dtype=kind.q_dtype,
                headdim_v=kind.v_dim,
                cu_seqlens_q=step.query_starts,
                page_size=self.page_size,
                causal=True,
                window_size=_window(kind),
                has_softcap=kind.cap > 0,
            )
            step.schedules[kind] = first, schedule
        return schedule


def _window(kind: AttentionKind) -> tuple[int, int]:
    return (kind.window, 0) if kind.window > 0 else (-1, -1)


def _options(kind: AttentionKind, sinks: torch.Tensor | None) -> dict[str, Any]:
    return {
        "softmax_scale": kind.scaling,
        "causal": True,
        "window_size": _window(kind),
        "softcap": kind.cap,
        # The kernel reads bfloat16 only, whatever the queries are.
        "sinks": None if sinks is None else sinks.to(torch.bfloat16),
    }
