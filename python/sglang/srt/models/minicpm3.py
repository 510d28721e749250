"""MiniCPM3; transformers class `MiniCPM3ForCausalLM`.

    h = h + r * latent_attention(rms_norm(h));  h0 = scale_emb * embed(token)
    h = h + r * down(silu(gate(x)) * up(x)),  x = rms_norm(h);  logits = head(h) / l

Differs from Llama:
- attention over one latent per token, LongRoPE on the rotated part, halves of it in pairs;
- constants of the config: `scale_emb`, r = `scale_depth` / sqrt(layers), l = hidden_size / `dim_model_base`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.mla import QKV_A, MLAttention
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.common.norm import add_norm
from sglang.srt.models.common.weights import GATE_UP, WeightMap
from sglang.srt.utils import add_prefix


class MiniCPM3DecoderLayer(nn.Module):
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
        self.residual_multiplier = config.scale_depth / math.sqrt(facts.num_hidden_layers)
        self.self_attn = MLAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            rope_is_neox_style=True,
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


class MiniCPM3Model(DecoderModel):
    layer_cls = MiniCPM3DecoderLayer

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.embed_tokens(input_ids) * self.config.scale_emb


class MiniCPM3ForCausalLM(CausalLM):
    model_cls = MiniCPM3Model
    weight_map = WeightMap(stacked=(*QKV_A, *GATE_UP))
    packed_modules_mapping = {
        "fused_qkv_a_proj_with_mqa": ["q_a_proj", "kv_a_proj_with_mqa"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def logit_scale(self, config: Any) -> float:
        return config.dim_model_base / config.hidden_size


EntryClass = MiniCPM3ForCausalLM
