"""Arcee Foundation Model; transformers class `ArceeForCausalLM`.

    h = h + attention(rms_norm(h))
    h = h + down(relu(up(rms_norm(h)))^2)

Differs from Llama:
- a plain MLP with the square of ReLU.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormLayer
from sglang.srt.models.common.mlp import PlainMLP
from sglang.srt.models.common.weights import QKV, WeightMap
from sglang.srt.utils import add_prefix


class ArceeDecoderLayer(PreNormLayer):
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
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)


class ArceeModel(DecoderModel):
    layer_cls = ArceeDecoderLayer


class ArceeForCausalLM(CausalLM):
    model_cls = ArceeModel
    weight_map = WeightMap(stacked=QKV)


EntryClass = ArceeForCausalLM
