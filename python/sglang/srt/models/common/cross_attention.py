"""Attention of tokens to the rows of media, whose keys and values have slots of their own in the cache.

    q = norm(Wq x), k = norm(Wk y), v = Wv y;  out = Wo softmax(q k^T / sqrt(d)) v

Legend: T tokens, N rows of media in the step, D model width, K kv heads of this rank, d head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import ModelFacts
from sglang.srt.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    RowParallelLinear,
)
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.utils import add_prefix

# Where the model leaves the rows of media that a step brings: `ForwardBatch.model_specific_states`.
ENCODER_STATES = "encoder_states"


class CrossAttention(nn.Module):
    """Queries of tokens, keys and values of pictures, which are written to the cache once."""

    def __init__(
        self, facts: ModelFacts, layer_id: int, quant_config: Any = None, prefix: str = ""
    ) -> None:
        super().__init__()
        tp_size, head_dim = get_tensor_model_parallel_world_size(), facts.head_dim
        parts = min(tp_size, facts.num_key_value_heads)  # a kv head may be on several ranks
        self.head_dim = head_dim
        self.q_proj = ColumnParallelLinear(
            facts.hidden_size,
            facts.num_attention_heads * head_dim,
            bias=False,
            quant_config=quant_config,
            prefix=add_prefix("q_proj", prefix),
        )
        self.kv_proj = MergedColumnParallelLinear(
            facts.hidden_size,
            [facts.num_key_value_heads * head_dim] * 2,
            bias=False,
            quant_config=quant_config,
            prefix=add_prefix("kv_proj", prefix),
            tp_rank=get_tensor_model_parallel_rank() * parts // tp_size,
            tp_size=parts,
        )
        self.o_proj = RowParallelLinear(
            facts.num_attention_heads * head_dim,
            facts.hidden_size,
            bias=False,
            quant_config=quant_config,
            prefix=add_prefix("o_proj", prefix),
        )
        self.q_norm = RMSNorm(head_dim, eps=facts.norm_eps)
        self.k_norm = RMSNorm(head_dim, eps=facts.norm_eps)
        self.attn = RadixAttention(
            facts.num_attention_heads // tp_size,
            head_dim,
            head_dim**-0.5,
            num_kv_heads=facts.num_key_value_heads // parts,
            layer_id=layer_id,
            is_cross_attention=True,
            quant_config=quant_config,
            prefix=add_prefix("attn", prefix),
        )

    def forward(self, x: torch.Tensor, forward_batch: ForwardBatch) -> torch.Tensor:
        """[T, D] -> [T, D]; zeros for tokens that see no picture."""
        q, _ = self.q_proj(x)
        states = (forward_batch.model_specific_states or {})[ENCODER_STATES]
        k, v = (None, None) if states is None else self._keys_and_values(states)
        attended = self.attn(self._norm_heads(q, self.q_norm), k, v, forward_batch)
        output, _ = self.o_proj(attended)
        return output

    def _keys_and_values(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kv, _ = self.kv_proj(states)  # [N, D] -> [N, 2 * K * d]
        k, v = kv.chunk(2, dim=-1)
        return self._norm_heads(k, self.k_norm), v.contiguous()

    def _norm_heads(self, x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        return norm(x.reshape(-1, self.head_dim)).view(x.shape)
