"""Attention whose scores fall with the distance (ALiBi, arXiv 2108.12409)."""

from __future__ import annotations

from typing import Any

import torch

from sglang.srt.distributed import get_tensor_model_parallel_rank
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.attention import GQAttention


class AlibiAttention(GQAttention):
    """Attention whose scores fall with the distance instead of being rotated; each head has a slope of its own."""

    slopes: torch.Tensor

    def __init__(self, hidden_size: int, num_heads: int, *sizes: Any, **options: Any) -> None:
        super().__init__(hidden_size, num_heads, *sizes, **options)
        first = get_tensor_model_parallel_rank() * self.num_heads
        slopes = alibi_slopes(num_heads)[first : first + self.num_heads]
        self.register_buffer("slopes", slopes, persistent=False)  # [H]

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, forward_batch: ForwardBatch
    ) -> torch.Tensor:  # [T], [T, D] -> [T, D]
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = self.split(qkv)
        output, _ = self.o_proj(self.attn(q, k, v, forward_batch, alibi_slopes=self.slopes))
        return output


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """float32 [num_heads]. For n heads, n a power of two, 2^(-8 i / n); other counts take the next lower power, then every second slope
    of the next higher one."""
    lower = 1 << (num_heads.bit_length() - 1)
    exponents = [8 * i / lower for i in range(1, lower + 1)]
    exponents += [4 * i / lower for i in range(1, 2 * (num_heads - lower), 2)]
    return torch.exp2(-torch.tensor(exponents, dtype=torch.float32))
