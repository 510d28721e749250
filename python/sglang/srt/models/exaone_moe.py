"""K-EXAONE; transformers class `ExaoneMoeForCausalLM`, published as `ExaoneMoEForCausalLM`.

    h = h + attention(rms_norm(h));  q, k = rope(rms_norm_per_head(q)), rope(rms_norm_per_head(k))
    h = h + f * sum_k w_k expert_k(x) + shared(x),  x = rms_norm(h),  s = sigmoid(Wg x),  w = s[ids] / sum,  ids = top_k(s + b)

Differs from Llama:
- q and k are normed head by head;
- windows where `layer_types` says, and then full layers have no positions;
- experts in the place of the MLP where `mlp_layer_types` says, beside shared experts that are one MLP;
- experts of the `topk_group` best of `n_group` groups only; a correction bias decides with the scores who is chosen.
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
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.utils import add_prefix


class ExaoneMoeDecoderLayer(PreNormLayer):
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
        layer_types = ("full_attention", "sliding_attention")
        require(facts, type(self).__name__, hidden_act=("silu",), layer_types=layer_types)
        window = facts.window_of_layer(layer_id)
        self.self_attn = GQAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            use_rope=facts.sliding_window is None or window >= 0,
            sliding_window=window,
            q_norm=RMSNorm(facts.head_dim, eps=facts.norm_eps),
            k_norm=RMSNorm(facts.head_dim, eps=facts.norm_eps),
        )
        self.mlp = _mlp(config, facts, layer_id, quant_config, add_prefix("mlp", prefix))
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)


class ExaoneMoeModel(DecoderModel):
    layer_cls = ExaoneMoeDecoderLayer


class ExaoneMoeForCausalLM(CausalLM):
    model_cls = ExaoneMoeModel
    weight_map = WeightMap(
        stacked=(*QKV, *GATE_UP),
        skip=(r"^mtp\.",),  # predicts further tokens
        rename=WeightsMapper(orig_to_new_substr={".mlp.e_score": ".mlp.gate.e_score"}),
        experts=ExpertNames(),
    )


def _mlp(
    config: Any,
    facts: ModelFacts,
    layer_id: int,
    quant_config: QuantizationConfig | None,
    prefix: str,
) -> nn.Module:
    if config.mlp_layer_types[layer_id] == "dense":
        return GatedMLP.from_facts(facts, quant_config, prefix)
    return SparseMoE(
        facts.hidden_size,
        config.moe_intermediate_size,
        config.num_experts,
        config.num_experts_per_tok,
        layer_id,
        renormalize=config.norm_topk_prob,
        scoring_func="sigmoid",
        num_groups=config.n_group,
        top_groups=config.topk_group,
        has_correction_bias=True,
        routed_scaling_factor=config.routed_scaling_factor,
        shared_intermediate_size=config.moe_intermediate_size * config.num_shared_experts or None,
        float32_router=True,
        quant_config=quant_config,
        prefix=prefix,
    )


# The published name, which draft models import.
ExaoneMoEForCausalLM = ExaoneMoeForCausalLM

EntryClass = ExaoneMoeForCausalLM
