"""Grouped-query attention with rotary positions, over the paged KV cache.

    q, k, v = split(Wqkv x);  q, k = rope(norm?(q), norm?(k));  out = Wo softmax(q k^T * scale) v

Legend: T tokens in the batch, D model width, H query heads and K kv heads of this rank, d head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import ModelFacts
from sglang.srt.distributed import get_tensor_model_parallel_world_size
from sglang.srt.layers.linear import QKVParallelLinear, RowParallelLinear
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.layers.rotary_embedding import get_rope
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.utils import apply_qk_norm
from sglang.srt.utils import add_prefix
from sglang.srt.utils.errors import ConfigError


class GQAttention(nn.Module):
    """One layer's attention. Head counts are totals; the tensor-parallel split happens here.

    `sliding_window`: previous tokens visible besides the token itself, -1 for all. `q_norm`/`k_norm`: norms
    over the head dim, applied to every head before the rotation.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        layer_id: int,
        *,
        rope_theta: float = 10000.0,
        rope_scaling: dict[str, Any] | None = None,
        rope_is_neox_style: bool = True,
        partial_rotary_factor: float = 1.0,
        max_position_embeddings: int = 8192,
        qkv_bias: bool = False,
        o_bias: bool = False,
        sliding_window: int = -1,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        tp_size = get_tensor_model_parallel_world_size()
        self.head_dim = head_dim
        self.num_heads = num_heads // tp_size
        self.num_kv_heads = max(1, num_kv_heads // tp_size)
        self.q_size = self.num_heads * head_dim
        self.kv_size = self.num_kv_heads * head_dim
        self.qkv_proj = QKVParallelLinear(
            hidden_size,
            head_dim,
            num_heads,
            num_kv_heads,
            bias=qkv_bias,
            quant_config=quant_config,
            prefix=add_prefix("qkv_proj", prefix),
        )
        self.o_proj = RowParallelLinear(
            num_heads * head_dim,
            hidden_size,
            bias=o_bias,
            quant_config=quant_config,
            prefix=add_prefix("o_proj", prefix),
        )
        self.q_norm = q_norm
        self.k_norm = k_norm
        self.rotary_emb = get_rope(
            head_dim,
            rotary_dim=head_dim,
            max_position=max_position_embeddings,
            base=rope_theta,
            is_neox_style=rope_is_neox_style,
            rope_scaling=rope_scaling,
            partial_rotary_factor=partial_rotary_factor,
        )
        self.attn = RadixAttention(
            self.num_heads,
            head_dim,
            head_dim**-0.5,
            num_kv_heads=self.num_kv_heads,
            layer_id=layer_id,
            sliding_window_size=sliding_window,
            quant_config=quant_config,
            prefix=add_prefix("attn", prefix),
        )

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, forward_batch: ForwardBatch
    ) -> torch.Tensor:  # [T], [T, D] -> [T, D]
        qkv, _ = self.qkv_proj(hidden_states)  # [T, (H + 2K) * d]
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = apply_qk_norm(q, k, self.q_norm, self.k_norm, self.head_dim)
        q, k = self.rotary_emb(positions, q, k)
        output, _ = self.o_proj(self.attn(q, k, v, forward_batch))  # [T, H * d] -> [T, D]
        return output


def rope_arguments(facts: ModelFacts) -> dict[str, Any]:
    """The rotary keyword arguments of `GQAttention` for a model with one set of rotary settings."""
    if facts.rope is None:
        raise ConfigError(
            f"model_type {facts.model_type!r} has no single set of rotary settings "
            "(rope_theta or rope_parameters) in its config.json"
        )
    return {
        "rope_theta": facts.rope.theta,
        "rope_scaling": facts.rope.scaling,
        "partial_rotary_factor": facts.rope.partial_rotary_factor,
        "max_position_embeddings": facts.max_position_embeddings,
    }
