"""XVERSE with experts (`XverseMoeForCausalLM`); with renormalised weights the maths of `GraniteMoeShared`, multipliers one.

    h = h + attention(rms_norm(h))
    h = h + sum_k w_k expert_k(x) + shared(x),  x = rms_norm(h),  w = top_k(softmax(Wr x)) / sum

Differs from Llama:
- `num_experts` experts of width `intermediate_size` in the place of the MLP, `moe_top_k` for each token, beside
  `num_shared_experts` that every token uses, stored as one MLP;
- `norm_topk_prob` false leaves a token's weights as they are.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormLayer
from sglang.srt.models.common.moe import SparseMoE
from sglang.srt.models.common.weights import GATE_UP, QKV, ExpertNames, WeightMap
from sglang.srt.models.deepseek import shared_width
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.utils import add_prefix


class XverseMoeDecoderLayer(PreNormLayer):
    """Pre-norm attention and experts around one residual stream."""

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
            facts, layer_id, quant_config, add_prefix("self_attn", prefix)
        )
        self.mlp = SparseMoE(
            facts.hidden_size,
            config.intermediate_size,
            config.num_experts,
            config.moe_top_k,
            layer_id,
            renormalize=config.norm_topk_prob,
            shared_intermediate_size=shared_width(
                config.intermediate_size, config.num_shared_experts
            ),
            quant_config=quant_config,
            prefix=add_prefix("mlp", prefix),
        )
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)


class XverseMoeModel(DecoderModel):
    layer_cls = XverseMoeDecoderLayer


class XverseMoeForCausalLM(CausalLM):
    model_cls = XverseMoeModel
    weight_map = WeightMap(
        stacked=(*QKV, *GATE_UP),
        rename=WeightsMapper(orig_to_new_substr={".mlp.router.": ".mlp.gate."}),
        experts=ExpertNames(),
    )


EntryClass = XverseMoeForCausalLM
