"""Granite 3 (dense); transformers class `GraniteForCausalLM`.

    h = h + r * attention(rms_norm(h));  scores = a * q k^T;  h0 = e * embed(token)
    h = h + r * down(silu(gate(x)) * up(x)),  x = rms_norm(h);  logits = head(h) / l

Differs from Llama by four constants of the config:
- `embedding_multiplier` e, `residual_multiplier` r, `logits_scaling` l;
- `attention_multiplier` a in place of one over the square root of the head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.common.norm import add_norm
from sglang.srt.utils import add_prefix


class GraniteDecoderLayer(nn.Module):
    """Pre-norm attention and MLP around one residual stream, each scaled."""

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
        self.residual_multiplier = config.residual_multiplier
        self.self_attn = GQAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            qkv_bias=facts.attention_bias,
            o_bias=facts.attention_bias,
            scaling=config.attention_multiplier,
        )
        self.mlp = GatedMLP.from_facts(facts, quant_config, add_prefix("mlp", prefix))
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
        x = self.self_attn(positions, x, forward_batch) * self.residual_multiplier
        x, residual = add_norm(self.post_attention_layernorm, x, residual)
        return self.mlp(x) * self.residual_multiplier, residual


class GraniteModel(DecoderModel):
    layer_cls: type[nn.Module] = GraniteDecoderLayer

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.embed_tokens(input_ids) * self.config.embedding_multiplier


class GraniteForCausalLM(CausalLM):
    model_cls: type[DecoderModel] = GraniteModel

    def logit_scale(self, config: Any) -> float:
        return 1.0 / config.logits_scaling


EntryClass = GraniteForCausalLM
