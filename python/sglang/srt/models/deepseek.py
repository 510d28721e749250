"""DeepSeek V1 with experts (`DeepseekForCausalLM`, arXiv 2401.06066); its decoder is the text model of DeepSeek-OCR 2.

    h = h + attention(rms_norm(h))
    h = h + c sum_k w_k expert_k(x) + shared(x),  x = rms_norm(h),  w = top_k(softmax(Wg x))

Differs from Llama:
- experts in the place of the MLP from layer `first_k_dense_replace` on, in every `moe_layer_freq`-th layer, beside
  `n_shared_experts` that every token uses, stored as one MLP;
- `norm_topk_prob`: the weights of a token's experts sum to one; `routed_scaling_factor` c.
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
from sglang.srt.utils.errors import ConfigError


class DeepseekDecoderLayer(PreNormLayer):
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
        require(facts, type(self).__name__, hidden_act=("silu",), mlp_bias=(False,))
        self.self_attn = GQAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            qkv_bias=facts.attention_bias,
            o_bias=facts.attention_bias,
        )
        self.mlp = _mlp(config, facts, layer_id, quant_config, add_prefix("mlp", prefix))
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)


class DeepseekModel(DecoderModel):
    layer_cls = DeepseekDecoderLayer


class DeepseekForCausalLM(CausalLM):
    model_cls = DeepseekModel
    weight_map = WeightMap(stacked=(*QKV, *GATE_UP), experts=ExpertNames())


def _mlp(
    config: Any,
    facts: ModelFacts,
    layer_id: int,
    quant_config: QuantizationConfig | None,
    prefix: str,
) -> nn.Module:
    """Raises ConfigError for scores that the family never had."""
    if layer_id < config.first_k_dense_replace or layer_id % config.moe_layer_freq:
        return GatedMLP.from_facts(facts, quant_config, prefix)
    if config.scoring_func != "softmax":
        raise ConfigError(f"Deepseek has scoring_func='softmax', not {config.scoring_func!r}")
    return SparseMoE(
        facts.hidden_size,
        config.moe_intermediate_size,
        config.n_routed_experts,
        config.num_experts_per_tok,
        layer_id,
        renormalize=config.norm_topk_prob,
        routed_scaling_factor=config.routed_scaling_factor,
        shared_intermediate_size=shared_width(
            config.moe_intermediate_size, config.n_shared_experts
        ),
        float32_router=True,
        quant_config=quant_config,
        prefix=prefix,
    )


def shared_width(expert_width: int, num_shared: int | None) -> int | None:
    """The inner width of all shared experts together; None where there are none."""
    return expert_width * num_shared if num_shared else None


EntryClass = DeepseekForCausalLM
