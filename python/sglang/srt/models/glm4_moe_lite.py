"""GLM-4.7-Flash; transformers class `Glm4MoeLiteForCausalLM`.

    h = h + latent_attention(rms_norm(h))
    h = h + shared(x) + a * sum_k w_k expert_k(x),  x = rms_norm(h),  w = top_k(sigmoid(Wg x) + b)

Differs from DeepSeek V3: `mlp_layer_types` names the layers with experts, by default all but the first.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.models.common.causal_lm import DecoderModel
from sglang.srt.models.deepseek_v2 import DeepseekV3DecoderLayer, DeepseekV3ForCausalLM


class Glm4MoeLiteDecoderLayer(DeepseekV3DecoderLayer):
    @staticmethod
    def has_experts(config: Any, layer_id: int) -> bool:
        return config.mlp_layer_types[layer_id] == "sparse"


class Glm4MoeLiteModel(DecoderModel):
    layer_cls = Glm4MoeLiteDecoderLayer


class Glm4MoeLiteForCausalLM(DeepseekV3ForCausalLM):
    model_cls = Glm4MoeLiteModel


EntryClass = Glm4MoeLiteForCausalLM
