"""SmolLM3; transformers class `SmolLM3ForCausalLM`.

    h = h + attention(rms_norm(h))
    h = h + down(silu(gate(x)) * up(x)),  x = rms_norm(h)

Differs from Llama:
- some layers have no positions at all (`no_rope_layers` is 0 there, 1 elsewhere);
- layers without positions may attend to a sliding window.
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
from sglang.srt.utils import add_prefix


class SmolLM3DecoderLayer(PreNormLayer):
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
        require(
            facts,
            type(self).__name__,
            hidden_act=("silu",),
            layer_types=("full_attention", "sliding_attention"),
        )
        self.self_attn = GQAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            use_rope=bool(config.no_rope_layers[layer_id]),
            qkv_bias=facts.attention_bias,
            o_bias=facts.attention_bias,
            sliding_window=facts.window_of_layer(layer_id),
        )
        self.mlp = GatedMLP.from_facts(facts, quant_config, add_prefix("mlp", prefix))
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)


class SmolLM3Model(DecoderModel):
    layer_cls = SmolLM3DecoderLayer


class SmolLM3ForCausalLM(CausalLM):
    model_cls = SmolLM3Model


EntryClass = SmolLM3ForCausalLM
