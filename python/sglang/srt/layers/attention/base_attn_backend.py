"""What an attention backend must provide.

A step is: `init_forward_metadata(batch)` once, then `forward` for every attention layer. Captured
graphs use the three `*_cuda_graph` methods instead. Legend: T tokens, B requests, H query heads and
K kv heads of this rank, d head dim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode


class AttentionBackend(ABC):
    """Computes attention and writes new keys and values to the pool of the batch."""

    @abstractmethod
    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Compute what all layers share; called before every eager forward."""

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Allocate the buffers that captured graphs read."""
        raise NotImplementedError(f"{type(self).__name__} cannot be captured in graphs")

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
        """Prepare the capture of one batch size."""
        raise NotImplementedError(f"{type(self).__name__} cannot be captured in graphs")

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
        """Update the buffers before a replay."""
        raise NotImplementedError(f"{type(self).__name__} cannot be captured in graphs")

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        """Sequence length of padding requests, 0 or 1."""
        return 1

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """q [T, H * d], k [T, K, d], v [T, K, d_v] -> [T, H * d_v]."""
        mode = forward_batch.forward_mode
        if mode.is_idle():
            return q.new_empty(q.shape[0], layer.tp_q_head_num * layer.v_head_dim)
        run = self.forward_decode if mode.is_decode() else self.forward_extend
        return run(q, k, v, layer, forward_batch, save_kv_cache, **kwargs)

    @abstractmethod
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
        """One token per request: T = B."""

    @abstractmethod
    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """`extend_seq_lens` new tokens per request after `extend_prefix_lens` cached ones."""

    def support_triton(self) -> bool:
        """May Triton kernels run beside this backend?"""
        return False

    def get_indexer_metadata(self, layer_id: int, forward_batch: ForwardBatch) -> Any:
        """Metadata of a sparse-attention indexer; None without one."""
        return None

    def get_verify_buffers_to_fill_after_draft(self) -> list[torch.Tensor | None]:
        """Buffers that speculative verification wants filled after drafting."""
        return [None, None]

    def update_verify_buffers_to_fill_after_draft(  # noqa: B027  (optional)
        self, spec_info: Any, cuda_graph_bs: int | None
    ) -> None:
        """React to the buffers having been filled."""
