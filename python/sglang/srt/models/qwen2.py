"""Qwen2 and Qwen2.5; transformers class `Qwen2ForCausalLM`.

    h = h + attention(rms_norm(h));  q, k, v = Wqkv x + b
    h = h + down(silu(gate(x)) * up(x)),  x = rms_norm(h)

Differs from Llama:
- q, k and v always have a bias, the output projection never;
- with `use_sliding_window`, layers from `max_window_layers` on (or those that `layer_types` names) see a window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.attention import GQAttention, rope_arguments
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.common.norm import add_norm
from sglang.srt.utils import add_prefix


class Qwen2MLP(GatedMLP):
    """The gated MLP under the name that other model files import."""


class Qwen2DecoderLayer(nn.Module):
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
        self.self_attn = GQAttention(
            facts.hidden_size,
            facts.num_attention_heads,
            facts.num_key_value_heads,
            facts.head_dim,
            layer_id,
            qkv_bias=True,
            sliding_window=facts.window_of_layer(layer_id),
            quant_config=quant_config,
            prefix=add_prefix("self_attn", prefix),
            **rope_arguments(facts),
        )
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


class Qwen2Model(DecoderModel):
    layer_cls: type[nn.Module] = Qwen2DecoderLayer


class Qwen2ForCausalLM(CausalLM):
    model_cls = Qwen2Model


def __getattr__(name: str) -> Any:
    """Other model files import the config class from here; late, because transformers is heavy."""
    if name == "Qwen2Config":
        from transformers import Qwen2Config

        return Qwen2Config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


EntryClass = Qwen2ForCausalLM
