"""What attention backends over the kernels of a package have in common: steps, captured decodes, and layers left to another backend.

Whole prompts attend over the tensors at hand; all else is written to the cache first and read from there. Legend: T tokens, B requests,
R rows, H query heads, K kv heads, d head dim.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from sglang.srt.layers.attention.attention_kind import AttentionKind, kind_of, why_not_plain
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.attention.declined_layers import DeclinedLayers
from sglang.srt.layers.attention.finite_values import move_to_keys
from sglang.srt.layers.attention.layer_inputs import join_rope, paged_buffers, save_new
from sglang.srt.layers.attention.page_index import (
    PagedRequests,
    find_graph_requests,
    find_requests,
)
from sglang.srt.layers.attention.triton_ops.metadata import StepMetadata
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

PADDING_LEN = 1


@dataclass
class PackagedStep(StepMetadata):
    """A step. `requests` are those of an eager step or of the latest replay, None where the model keeps no cache."""

    requests: PagedRequests | None = None
    is_decode: bool = True
    graph_size: int | None = None  # of a captured decode

    @property
    def has_prefix(self) -> bool:
        """Has a request keys of earlier steps?"""
        found = self.requests
        return found is not None and bool((found.lens > found.new_lens).any())

    @property
    def has_neighbours(self) -> bool:
        """Are there several requests?"""
        return self.requests is not None and len(self.requests.lens) > 1


Step = TypeVar("Step", bound=PackagedStep)


class PackagedAttnBackend(AttentionBackend, Generic[Step]):
    """See the module docstring.

    An extend with a cached prefix, like a decode, reads the new tokens from the cache, also where `save_kv_cache` is False: whoever says
    so has written them.

    Args:
        table: int32 [R, W], the row table.
        page_size: slots per page.
        create_other: makes the backend of the layers that are declined.
    """

    name: str

    def __init__(
        self, table: torch.Tensor, page_size: int, create_other: Callable[[], AttentionBackend]
    ) -> None:
        self.table = table
        self.page_size = page_size
        self.device = table.device
        self.forward_metadata: Step | None = None
        self._declined = DeclinedLayers(self.name, create_other)
        self._graph_steps: dict[int, Step] = {}
        self._max_graph_size = 0

    @property
    def declined(self) -> frozenset[str]:
        """Why layers have gone to the other backend so far."""
        return self._declined.reasons

    # --- what a package does

    @abstractmethod
    def make_step(
        self, requests: PagedRequests | None, is_decode: bool, graph_size: int | None = None
    ) -> Step:
        """A step before its first layer; of a capture, with the buffers that its graph reads."""

    @abstractmethod
    def update_step(self, step: Step) -> None:
        """Bring the buffers of a captured step up to its requests, without waiting for the device."""

    @staticmethod
    @abstractmethod
    def why_no_kernel(kind: AttentionKind, has_sinks: bool, is_prompts: bool) -> str | None:
        """What the package has no kernel for; None if it has one. `is_prompts`: the cache is not read."""

    @abstractmethod
    def attend_prompts(
        self,
        step: Step,
        kind: AttentionKind,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """q [T, H, d], k [T, K, d], v [T, K, d_v], which are all that there is -> [T, H, d_v]."""

    @abstractmethod
    def attend_cache(
        self,
        step: Step,
        kind: AttentionKind,
        q: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        layer: RadixAttention,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """q [T, H, d] over pages [pages, page, K, d], in which its own keys are -> [T, H, d_v]."""

    # --- metadata

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Note the requests, and begin a step of the package. No device synchronisation."""
        mode = forward_batch.forward_mode
        is_idle = mode.is_idle() or forward_batch.batch_size == 0
        requests = None
        if not is_idle and forward_batch.req_pool_indices is not None:
            requests = find_requests(forward_batch, self.table, self.page_size)
        self.forward_metadata = self.make_step(requests, mode.is_decode())
        self._declined.start_step(lambda other: other.init_forward_metadata(forward_batch))

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Forget earlier captures."""
        self._graph_steps = {}
        self._max_graph_size = max_bs
        self._declined.init_cuda_graph_state(max_bs, max_num_tokens)

    def init_forward_metadata_capture_cuda_graph(
        self,
        bs: int,
        num_tokens: int,
        req_pool_indices: torch.Tensor,
        seq_lens: torch.Tensor,
        encoder_lens: torch.Tensor | None,
        forward_mode: ForwardMode,
        spec_info: Any,
    ) -> None:
        """Begin a decode of `bs` requests. What it needs besides is made by the forward that precedes the capture."""
        if not forward_mode.is_decode() or spec_info is not None:
            raise ValueError(
                f"the {self.name} attention backend captures plain decodes only, not {forward_mode.name}"
            )
        requests = find_graph_requests(
            self.table, req_pool_indices, None, bs, PADDING_LEN, self.page_size
        )
        self._graph_steps[bs] = self.forward_metadata = self.make_step(requests, True, bs)
        self._declined.start_capture(
            bs,
            lambda other: other.init_forward_metadata_capture_cuda_graph(
                bs, num_tokens, req_pool_indices, seq_lens, encoder_lens, forward_mode, spec_info
            ),
        )

    def init_forward_metadata_replay_cuda_graph(
        self,
        bs: int,
        req_pool_indices: torch.Tensor,
        seq_lens: torch.Tensor,
        seq_lens_sum: int,
        encoder_lens: torch.Tensor | None,
        forward_mode: ForwardMode,
        spec_info: Any,
        seq_lens_cpu: torch.Tensor | None,
    ) -> None:
        """Bring what the graph reads up to this step's requests. `seq_lens_cpu` are those of the real ones."""
        if seq_lens_cpu is None:
            raise ValueError(f"the {self.name} attention backend plans from seq_lens_cpu")
        step = self._graph_steps[bs]
        step.requests = find_graph_requests(
            self.table, req_pool_indices, seq_lens_cpu, bs, PADDING_LEN, self.page_size
        )
        self.update_step(step)
        self.forward_metadata = step
        self._declined.start_replay(
            bs,
            lambda other: other.init_forward_metadata_replay_cuda_graph(
                bs, req_pool_indices, seq_lens, seq_lens_sum, encoder_lens, forward_mode, spec_info,
                seq_lens_cpu,
            ),
        )  # fmt: skip

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        return PADDING_LEN

    def support_triton(self) -> bool:
        return True

    # --- forward

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Of either phase: what differs is in the step's plan."""
        step = self.forward_metadata
        assert step is not None, "init_forward_metadata was not called"
        reason = why_not_plain(layer, forward_batch, kwargs, step.custom_mask is not None)
        if reason is None:
            cache = paged_buffers(layer, forward_batch, self.page_size)
            kind = kind_of(layer, q.dtype, cache)
            is_prompts = k is not None and not step.is_decode and not step.has_prefix
            is_prompts = is_prompts and not kind.is_latent
            sinks: torch.Tensor | None = kwargs.get("sinks")
            reason = self.why_no_kernel(kind, sinks is not None, is_prompts)
        if reason is not None:
            other = self._declined.backend_for(reason, step)
            return other.forward(q, k, v, layer, forward_batch, save_kv_cache, **kwargs)
        q, k = join_rope(q, k, layer, kwargs)
        if save_kv_cache:
            save_new(k, v, layer, forward_batch)
        if is_prompts and k is not None and v is not None:
            if step.has_neighbours:
                move_to_keys(k, v)
            return self.attend_prompts(step, kind, q, k, v, sinks).flatten(1)
        return self.attend_cache(step, kind, q, cache, layer, sinks).flatten(1)

    forward_extend = forward_decode
