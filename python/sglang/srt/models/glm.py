"""GLM-4 9B in its transformers layout; transformers class `GlmForCausalLM` (arXiv 2406.12793).

    h = h + attention(rms_norm(h));  q, k, v = Wqkv x + b
    h = h + down(silu(gate(x)) * up(x)),  x = rms_norm(h)

Differs from Llama:
- rotary positions turn neighbouring dimensions, and only the first half of each head;
- q, k and v may have a bias, the output projection never;
- gate and up are fused in the checkpoint too.
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
from sglang.srt.models.common.weights import QKV, WeightMap
from sglang.srt.utils import add_prefix


class GlmDecoderLayer(PreNormLayer):
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
            qkv_bias=facts.attention_bias,
            rope_is_neox_style=False,
        )
        self.mlp = GatedMLP.from_facts(facts, quant_config, add_prefix("mlp", prefix))
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)


class GlmModel(DecoderModel):
    layer_cls = GlmDecoderLayer


class GlmForCausalLM(CausalLM):
    model_cls = GlmModel
    weight_map = WeightMap(stacked=QKV)
    packed_modules_mapping = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_up_proj"],
    }


EntryClass = GlmForCausalLM
