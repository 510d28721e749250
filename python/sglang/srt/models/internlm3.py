"""InternLM 3; published as code, architecture `InternLM3ForCausalLM`.

    h = h + attention(rms_norm(h))
    h = h + down(silu(gate(x)) * up(x)),  x = rms_norm(h)

Differs from Llama: q, k and v have the bias of `qkv_bias`, every other matrix that of `bias`.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.configs.hf_config import read_facts
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from sglang.srt.utils import add_prefix


class InternLM3DecoderLayer(LlamaDecoderLayer):
    """Llama's layer with biases of its own."""

    self_attn: Any

    def __init__(
        self,
        config: Any,
        layer_id: int = 0,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__(config, layer_id, quant_config, prefix)
        facts = read_facts(config)
        self.self_attn = GQAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            qkv_bias=bool(facts.qkv_bias),
            o_bias=facts.attention_bias,
        )


class InternLM3Model(LlamaModel):
    layer_cls = InternLM3DecoderLayer


class InternLM3ForCausalLM(LlamaForCausalLM):
    model_cls = InternLM3Model


EntryClass = InternLM3ForCausalLM
