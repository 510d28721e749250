"""Llama (2, 3, and the many checkpoints of its shape); transformers class `LlamaForCausalLM`.

    h = h + attention(rms_norm(h))
    h = h + down(silu(gate(x)) * up(x)),  x = rms_norm(h)

The family's reference: grouped-query attention with rotary positions of any kind, optional biases on all
attention or all MLP matrices, a head dim of its own, tied or separate head. Other files say how they differ.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import ModelFacts, read_facts, require
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.attention import GQAttention, rope_arguments
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.common.norm import add_norm
from sglang.srt.utils import add_prefix


class LlamaMLP(GatedMLP):
    """The gated MLP under the name that other model files import."""


class LlamaAttention(GQAttention):
    """Attention with Llama's argument order. `bias` is on all four projections."""

    def __init__(
        self,
        config: Any,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        layer_id: int = 0,
        rope_theta: float = 10000,
        rope_scaling: dict[str, Any] | None = None,
        rope_is_neox_style: bool = True,
        max_position_embeddings: int = 8192,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
        bias: bool = False,
        *,
        partial_rotary_factor: float = 1.0,
        sliding_window: int = -1,
    ) -> None:
        super().__init__(
            hidden_size,
            num_heads,
            num_kv_heads,
            read_facts(config).head_dim,
            layer_id,
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            rope_is_neox_style=rope_is_neox_style,
            partial_rotary_factor=partial_rotary_factor,
            max_position_embeddings=max_position_embeddings,
            qkv_bias=bias,
            o_bias=bias,
            sliding_window=sliding_window,
            quant_config=quant_config,
            prefix=prefix,
        )
        self.max_position_embeddings = max_position_embeddings


class LlamaDecoderLayer(nn.Module):
    """Pre-norm attention and MLP around one residual stream."""

    def __init__(
        self,
        config: Any,
        layer_id: int = 0,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        facts = read_facts(config)
        require(facts, type(self).__name__, hidden_act=("silu",))
        self.hidden_size = facts.hidden_size
        self.self_attn = LlamaAttention(
            config,
            facts.hidden_size,
            facts.num_attention_heads,
            facts.num_key_value_heads,
            layer_id,
            quant_config=quant_config,
            prefix=add_prefix("self_attn", prefix),
            bias=facts.attention_bias,
            sliding_window=self.sliding_window(facts, layer_id),
            **rope_arguments(facts),
        )
        self.mlp = LlamaMLP(
            facts.hidden_size,
            facts.intermediate_size,
            facts.hidden_act,
            quant_config=quant_config,
            prefix=add_prefix("mlp", prefix),
            bias=facts.mlp_bias,
        )
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)

    def sliding_window(self, facts: ModelFacts, layer_id: int) -> int:
        """Previous tokens this layer sees, -1 for all: Llama has no window."""
        return -1

    def forward(
        self,
        positions: torch.Tensor,  # [T]
        hidden_states: torch.Tensor,  # [T, D]
        forward_batch: ForwardBatch,
        residual: torch.Tensor | None,  # [T, D]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, residual = add_norm(self.input_layernorm, hidden_states, residual)
        x = self.self_attn(positions, x, forward_batch)
        x, residual = add_norm(self.post_attention_layernorm, x, residual)
        return self.mlp(x), residual


class LlamaModel(DecoderModel):
    layer_cls = LlamaDecoderLayer


class LlamaForCausalLM(CausalLM):
    model_cls = LlamaModel


def __getattr__(name: str) -> Any:
    """Other model files import the config class from here; late, because transformers is heavy."""
    if name == "LlamaConfig":
        from transformers import LlamaConfig

        return LlamaConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


EntryClass = LlamaForCausalLM
