"""ChatGLM 2, ChatGLM 3 and GLM-4 9B in their first form; published as code, architecture `ChatGLMModel`.

    h = h + attention(rms_norm(h));  q, k, v = Wqkv x + b
    h = h + down(silu(gate(x)) * up(x)),  x = rms_norm(h)

Differs from Llama:
- rotary positions turn neighbouring dimensions, and only the first half of each head; `rope_ratio` multiplies their base, as in
  ChatGLM3-6B-32K and GLM-4. ChatGLM2-6B-32K divides positions by it, which its config does not tell: override
  `{"rope_ratio": 1, "rope_scaling": {"type": "linear", "factor": <rope_ratio>}}`;
- groups of query heads share keys and values; q, k and v have a bias;
- q, k and v are fused in the checkpoint, gate and up too; names are its own.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.configs.hf_config import read_facts
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormLayer
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.common.weights import WeightMap
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.utils import add_prefix
from sglang.srt.utils.errors import ConfigError

# Keys that change the mathematics, with the value that every published checkpoint has.
_IMPLEMENTED = {
    "rmsnorm": True,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
    "fp32_residual_connection": False,
}
_NAMES = WeightsMapper(
    orig_to_new_prefix={
        "transformer.encoder.": "model.",
        "transformer.encoder.final_layernorm.": "model.norm.",
        "transformer.embedding.word_embeddings.": "model.embed_tokens.",
        "transformer.output_layer.": "lm_head.",
    },
    orig_to_new_substr={
        ".self_attention.query_key_value.": ".self_attn.qkv_proj.",
        ".self_attention.dense.": ".self_attn.o_proj.",
        ".mlp.dense_h_to_4h.": ".mlp.gate_up_proj.",
        ".mlp.dense_4h_to_h.": ".mlp.down_proj.",
    },
)


class ChatGLMLayer(PreNormLayer):
    """Pre-norm attention and MLP around one residual stream."""

    def __init__(
        self,
        config: Any,
        layer_id: int = 0,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        facts, keys = read_facts(config), config.to_dict()
        for key, value in _IMPLEMENTED.items():
            if keys.get(key, value) != value:
                raise ConfigError(f"{type(self).__name__} implements {key}={value} only")
        bias = bool(keys.get("add_bias_linear"))
        self.self_attn = GQAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            qkv_bias=bias or bool(facts.qkv_bias),
            o_bias=bias,
            rope_is_neox_style=False,
        )
        self.mlp = GatedMLP(
            facts.hidden_size,
            facts.intermediate_size,
            "silu",
            quant_config,
            add_prefix("mlp", prefix),
            bias=bias,
        )
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)


class ChatGLMDecoder(DecoderModel):
    layer_cls = ChatGLMLayer


class ChatGLMForCausalLM(CausalLM):
    model_cls = ChatGLMDecoder
    weight_map = WeightMap(rename=_NAMES, skip=(r"rotary_pos_emb\.inv_freq$",))
    packed_modules_mapping = {"qkv_proj": ["qkv_proj"], "gate_up_proj": ["gate_up_proj"]}


class ChatGLMForConditionalGeneration(ChatGLMForCausalLM):
    """The text model under the name that some configs give it."""


class ChatGLMModel(ChatGLMForCausalLM):
    """The name in most published configs; it holds the head too."""


EntryClass = [ChatGLMModel, ChatGLMForConditionalGeneration, ChatGLMForCausalLM]
