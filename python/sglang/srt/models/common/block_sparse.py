"""Attention that sees only some blocks of keys: the nearest ones, and every so many-th before them (arXiv 2404.14219)."""

from __future__ import annotations

import torch

from sglang.srt.distributed import get_tensor_model_parallel_rank
from sglang.srt.layers.attention.torch_ops import BlockSparse
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.attention import GQAttention


class BlockSparseAttention(GQAttention):
    """Attention of a layer that sees only some blocks of keys, other ones for each head."""

    pattern: BlockSparse

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, forward_batch: ForwardBatch
    ) -> torch.Tensor:  # [T], [T, D] -> [T, D]
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = self.split(qkv)
        q, k = self.norm_and_rotate(positions, q, k)
        output, _ = self.o_proj(self.attn(q, k, v, forward_batch, block_sparse=self.pattern))
        return output

    def set_pattern(
        self,
        block_size: int,
        num_local_blocks: int,
        stride: int,
        total_heads: int,
        *,
        is_same_for_heads: bool,
    ) -> None:
        """Of this rank's heads: each of `total_heads` begins to count blocks a step further on, unless all see the same."""
        step = 0 if is_same_for_heads else max(1, stride // total_heads)
        first = get_tensor_model_parallel_rank() * self.num_heads
        heads = torch.arange(first, first + self.num_heads)
        self.pattern = BlockSparse(block_size, num_local_blocks, stride, heads * step)
