"""Qwen3 (dense); transformers class `Qwen3ForCausalLM`.

    h = h + attention(rms_norm(h));  q, k = rope(rms_norm_per_head(q)), rope(rms_norm_per_head(k))
    h = h + down(silu(gate(x)) * up(x)),  x = rms_norm(h)

Differs from Llama:
- q and k are normed head by head before the rotation;
- the head dim is the config's own, `attention_bias` is on all four projections;
- sliding windows as in Qwen2.
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
from sglang.srt.models.common.causal_lm import CausalLM
from sglang.srt.models.common.norm import add_norm
from sglang.srt.models.qwen2 import Qwen2MLP, Qwen2Model
from sglang.srt.utils import add_prefix


class Qwen3DecoderLayer(nn.Module):
    """Pre-norm attention and MLP around one residual stream."""

    def __init__(
        self,
        config: Any,
        layer_id: int = 0,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
        alt_stream: Any = None,
    ) -> None:
        super().__init__()
        facts = read_facts(config)
        require(
            facts,
            type(self).__name__,
            hidden_act=("silu",),
            layer_types=("full_attention", "sliding_attention"),
        )
        self.hidden_size = facts.hidden_size
        self.self_attn = _attention(facts, layer_id, quant_config, add_prefix("self_attn", prefix))
        self.mlp = Qwen2MLP(
            facts.hidden_size,
            facts.intermediate_size,
            facts.hidden_act,
            quant_config=quant_config,
            prefix=add_prefix("mlp", prefix),
        )
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)

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


class Qwen3Model(Qwen2Model):
    layer_cls = Qwen3DecoderLayer


class Qwen3ForCausalLM(CausalLM):
    model_cls = Qwen3Model


def _attention(
    facts: ModelFacts, layer_id: int, quant_config: QuantizationConfig | None, prefix: str
) -> GQAttention:
    return GQAttention(
        facts.hidden_size,
        facts.num_attention_heads,
        facts.num_key_value_heads,
        facts.head_dim,
        layer_id,
        qkv_bias=facts.attention_bias,
        o_bias=facts.attention_bias,
        sliding_window=facts.window_of_layer(layer_id),
        q_norm=RMSNorm(facts.head_dim, eps=facts.norm_eps),
        k_norm=RMSNorm(facts.head_dim, eps=facts.norm_eps),
        quant_config=quant_config,
        prefix=prefix,
        **rope_arguments(facts),
    )


def __getattr__(name: str) -> Any:
    """Other model files import the config class from here; late, because transformers is heavy."""
    if name == "Qwen3Config":
        from transformers import Qwen3Config

        return Qwen3Config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


EntryClass = Qwen3ForCausalLM
