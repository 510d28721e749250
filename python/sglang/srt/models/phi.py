"""Phi-1, Phi-1.5 and Phi-2; transformers class `PhiForCausalLM` (arXiv 2309.05463).

    x = layer_norm(h);  h = h + attention(x) + mlp(x)
    mlp(x) = down(gelu(up(x)))

Differs from Llama:
- attention and MLP read the same norm and their outputs are added together;
- layer norms with a bias, biases on every matrix, the head included;
- a plain MLP, rotary positions on a part of each head, optional layer norms on the heads of q and k.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import read_facts
from sglang.srt.layers.layernorm import LayerNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.mlp import PlainMLP
from sglang.srt.models.common.norm import add_norm
from sglang.srt.models.common.weights import QKV, WeightMap
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.utils import add_prefix


class PhiDecoderLayer(nn.Module):
    """Attention and MLP side by side."""

    def __init__(
        self,
        config: Any,
        layer_id: int = 0,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        facts = read_facts(config)
        norms: dict[str, Any] = {}
        if config.qk_layernorm:
            norms["q_norm"] = LayerNorm(facts.head_dim, eps=facts.norm_eps)
            norms["k_norm"] = LayerNorm(facts.head_dim, eps=facts.norm_eps)
        self.self_attn = GQAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            qkv_bias=True,
            o_bias=True,
            **norms,
        )
        self.mlp = PlainMLP(
            facts.hidden_size,
            facts.intermediate_size,
            facts.hidden_act,
            quant_config,
            add_prefix("mlp", prefix),
            bias=True,
        )
        self.input_layernorm = LayerNorm(facts.hidden_size, eps=facts.norm_eps)

    def forward(
        self,
        positions: torch.Tensor,  # [T]
        hidden_states: torch.Tensor,  # [T, D]
        forward_batch: ForwardBatch,
        residual: torch.Tensor | None,  # [T, D]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, residual = add_norm(self.input_layernorm, hidden_states, residual)
        return self.self_attn(positions, x, forward_batch) + self.mlp(x), residual


class PhiModel(DecoderModel):
    layer_cls = PhiDecoderLayer

    def make_norm(self, hidden_size: int, eps: float) -> nn.Module:
        return LayerNorm(hidden_size, eps=eps)


class PhiForCausalLM(CausalLM):
    model_cls = PhiModel
    head_bias = True
    weight_map = WeightMap(
        stacked=QKV,
        rename=WeightsMapper(
            orig_to_new_substr={
                ".self_attn.dense.": ".self_attn.o_proj.",
                ".q_layernorm.": ".q_norm.",
                ".k_layernorm.": ".k_norm.",
                ".mlp.fc1.": ".mlp.up_proj.",
                ".mlp.fc2.": ".mlp.down_proj.",
            },
            orig_to_new_prefix={"model.final_layernorm.": "model.norm."},
        ),
    )


EntryClass = PhiForCausalLM
