"""Nemotron-3/4 and Minitron; transformers class `NemotronForCausalLM` (arXiv 2402.16819).

    h = h + attention(norm(h));  norm = layer norm times (1 + w) plus b
    h = h + down(relu(up(norm(h)))^2)

Differs from Llama:
- layer norms with a bias, whose weight is stored as a difference from one;
- a plain MLP with the square of ReLU;
- rotary positions on a part of each head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import LayerNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormLayer
from sglang.srt.models.common.mlp import PlainMLP
from sglang.srt.models.common.weights import QKV, WeightMap
from sglang.srt.utils import add_prefix


class NemotronLayerNorm(LayerNorm):
    """Layer norm that multiplies by `1 + w`."""

    def forward_native(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight.float() + 1.0, self.bias.float()
        wide = F.layer_norm(x.float(), (self.hidden_size,), weight, bias, self.variance_epsilon)
        return wide.to(x.dtype)


class NemotronDecoderLayer(PreNormLayer):
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
        require(facts, type(self).__name__, hidden_act=("relu2",))
        self.self_attn = GQAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            qkv_bias=facts.attention_bias,
            o_bias=facts.attention_bias,
        )
        self.mlp = PlainMLP(
            facts.hidden_size,
            facts.intermediate_size,
            facts.hidden_act,
            quant_config,
            add_prefix("mlp", prefix),
            bias=facts.mlp_bias,
        )
        self.input_layernorm = NemotronLayerNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = NemotronLayerNorm(facts.hidden_size, eps=facts.norm_eps)


class NemotronModel(DecoderModel):
    layer_cls = NemotronDecoderLayer

    def make_norm(self, hidden_size: int, eps: float) -> nn.Module:
        return NemotronLayerNorm(hidden_size, eps=eps)


class NemotronForCausalLM(CausalLM):
    model_cls = NemotronModel
    weight_map = WeightMap(stacked=QKV)


EntryClass = NemotronForCausalLM
