"""GLM-4.5, 4.6 and 4.7; transformers class `Glm4MoeForCausalLM` (arXiv 2508.06471).

    h = h + attention(rms_norm(h))
    h = h + f * sum_k w_k expert_k(x) + shared(x),  x = rms_norm(h),  s = sigmoid(Wg x),  w = s[ids] / sum,  ids = top_k(s + b)

Differs from Llama:
- biases of q, k and v, norms of their heads where `use_qk_norm` is on, rotation of the first half of a head;
- behind the first `first_k_dense_replace` layers experts in the place of the MLP, beside shared experts that are one MLP;
- experts of the `topk_group` best of `n_group` groups only; a correction bias decides with the scores who is chosen;
- layers past `num_hidden_layers` in the checkpoint predict further tokens and are not loaded.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from sglang.srt.configs.hf_config import ModelFacts, read_facts, require
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormLayer
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.common.moe import SparseMoE
from sglang.srt.models.common.weights import GATE_UP, QKV, ExpertNames, WeightMap
from sglang.srt.utils import add_prefix


class Glm4MoeDecoderLayer(PreNormLayer):
    """Pre-norm attention and MLP or experts around one residual stream."""

    def __init__(
        self,
        config: Any,
        layer_id: int = 0,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        facts = read_facts(config)
        require(facts, type(self).__name__, hidden_act=("silu",), layer_types=("full_attention",))
        has_norms = config.use_qk_norm
        self.self_attn = GQAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            qkv_bias=facts.attention_bias,
            q_norm=RMSNorm(facts.head_dim, eps=facts.norm_eps) if has_norms else None,
            k_norm=RMSNorm(facts.head_dim, eps=facts.norm_eps) if has_norms else None,
        )
        self.mlp = _mlp(config, facts, layer_id, quant_config, add_prefix("mlp", prefix))
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)


class Glm4MoeModel(DecoderModel):
    layer_cls = Glm4MoeDecoderLayer


class Glm4MoeForCausalLM(CausalLM):
    model_cls = Glm4MoeModel
    weight_map = WeightMap(stacked=(*QKV, *GATE_UP), experts=ExpertNames())


def _mlp(
    config: Any,
    facts: ModelFacts,
    layer_id: int,
    quant_config: QuantizationConfig | None,
    prefix: str,
) -> nn.Module:
    if layer_id < config.first_k_dense_replace:
        return GatedMLP.from_facts(facts, quant_config, prefix)
    return SparseMoE(
        facts.hidden_size,
        config.moe_intermediate_size,
        config.n_routed_experts,
        config.num_experts_per_tok,
        layer_id,
        renormalize=config.norm_topk_prob,
        scoring_func="sigmoid",
        num_groups=config.n_group,
        top_groups=config.topk_group,
        has_correction_bias=True,
        routed_scaling_factor=config.routed_scaling_factor,
        shared_intermediate_size=config.moe_intermediate_size * config.n_shared_experts or None,
        float32_router=True,
        quant_config=quant_config,
        prefix=prefix,
    )


EntryClass = Glm4MoeForCausalLM
