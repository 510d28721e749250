"""DeepSeek V2, V3, R1 and Kimi K2; transformers classes `DeepseekV2ForCausalLM` (arXiv 2405.04434) and `DeepseekV3ForCausalLM`
(arXiv 2412.19437).

    h = h + latent_attention(rms_norm(h))
    h = h + shared(x) + a * sum_k w_k expert_k(x),  x = rms_norm(h),  w = top_k(score(Wg x) + b)

Differs from Llama:
- attention over one latent per token, yarn with a factor of the scores, rotated dimensions in pairs of neighbours;
- experts in the layers from `first_k_dense_replace` on, beside shared ones that every token uses, scaled by `routed_scaling_factor`;
- V2: softmax scores, optionally of the best groups of experts, weights as they are;
- V3: sigmoid scores, groups chosen by their two best, a correction bias for the choice, renormalised weights.

The layers of multi-token prediction behind the last one are not loaded.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from torch import nn

from sglang.srt.configs.hf_config import read_facts, require, to_mapping
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormLayer
from sglang.srt.models.common.deepseek import (
    DeepseekV2AttentionMLA as DeepseekV2AttentionMLA,
)
from sglang.srt.models.common.deepseek import (
    DeepseekV2MLP,
    DeepseekV2MoE,
    DeepseekV3MoE,
)
from sglang.srt.models.common.mla import QKV_A, MLAttention
from sglang.srt.models.common.weights import GATE_UP, ExpertNames, WeightMap
from sglang.srt.utils import add_prefix


class DeepseekV2DecoderLayer(PreNormLayer):
    """Pre-norm attention and MLP or experts around one residual stream."""

    moe_cls: type[nn.Module] = DeepseekV2MoE

    def __init__(
        self,
        config: Any,
        layer_id: int = 0,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        facts = read_facts(config)
        require(facts, type(self).__name__, hidden_act=("silu",), mlp_bias=(False,))
        self.self_attn = MLAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            rope_is_neox_style=not self.has_neighbour_pairs(config),
        )
        self.mlp: nn.Module
        if self.has_experts(config, layer_id):
            self.mlp = self.moe_cls(config, layer_id, quant_config, add_prefix("mlp", prefix))
        else:
            self.mlp = DeepseekV2MLP(
                facts.hidden_size,
                facts.intermediate_size,
                facts.hidden_act,
                quant_config,
                prefix=add_prefix("mlp", prefix),
            )
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)

    @staticmethod
    def has_neighbour_pairs(config: Any) -> bool:
        """Whether the rotation pairs dimension 2i with 2i + 1."""
        return True

    @staticmethod
    def has_experts(config: Any, layer_id: int) -> bool:
        """Whether a layer has experts instead of one MLP."""
        if config.n_routed_experts is None or layer_id < config.first_k_dense_replace:
            return False
        # Every published model has 1; transformers' configs do not have the key.
        return layer_id % (to_mapping(config).get("moe_layer_freq") or 1) == 0


class DeepseekV3DecoderLayer(DeepseekV2DecoderLayer):
    moe_cls = DeepseekV3MoE

    @staticmethod
    def has_neighbour_pairs(config: Any) -> bool:
        return config.rope_interleave


class DeepseekV2Model(DecoderModel):
    layer_cls = DeepseekV2DecoderLayer


class DeepseekV3Model(DecoderModel):
    layer_cls = DeepseekV3DecoderLayer


class DeepseekV2ForCausalLM(CausalLM):
    model_cls = DeepseekV2Model
    weight_map = WeightMap(stacked=(*QKV_A, *GATE_UP), experts=ExpertNames())
    packed_modules_mapping = {
        "fused_qkv_a_proj_with_mqa": ["q_a_proj", "kv_a_proj_with_mqa"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__(config, quant_config, prefix)
        self.weight_map = replace(self.weight_map, skip=prediction_layers(config))


class DeepseekV3ForCausalLM(DeepseekV2ForCausalLM):
    model_cls = DeepseekV3Model


def prediction_layers(config: Any) -> tuple[str, ...]:
    """A pattern of the tensors of multi-token prediction, which are numbered on from the last layer; none without such layers."""
    raw = to_mapping(config)
    count = raw.get("num_nextn_predict_layers") or 0
    first = config.num_hidden_layers
    numbers = "|".join(re.escape(str(first + i)) for i in range(count))
    return (rf"^model\.layers\.({numbers})\.",) if numbers else ()


EntryClass = [DeepseekV2ForCausalLM, DeepseekV3ForCausalLM]
