"""Phi-3, Phi-3.5 mini and Phi-4; transformers class `Phi3ForCausalLM` (arXiv 2404.14219, 2412.08905).

    h = h + attention(rms_norm(h))
    h = h + down(silu(gate(x)) * up(x)),  x = rms_norm(h)

Differs from Llama:
- q, k, v and gate, up are fused in the checkpoint too;
- long contexts by LongRoPE: two sets of rotary factors, chosen once for the context length served;
- optional sliding window on every layer, rotary positions on a part of each head (Phi-4-mini).
"""

from __future__ import annotations

from typing import Any

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormLayer
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.common.weights import WeightMap
from sglang.srt.utils import add_prefix


class Phi3DecoderLayer(PreNormLayer):
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
        self.self_attn = GQAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            sliding_window=facts.window_of_layer(layer_id),
        )
        self.mlp = GatedMLP.from_facts(facts, quant_config, add_prefix("mlp", prefix))
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)


class Phi3Model(DecoderModel):
    layer_cls = Phi3DecoderLayer


class Phi3ForCausalLM(CausalLM):
    model_cls = Phi3Model
    weight_map = WeightMap()
    packed_modules_mapping = {"qkv_proj": ["qkv_proj"], "gate_up_proj": ["gate_up_proj"]}


EntryClass = Phi3ForCausalLM
