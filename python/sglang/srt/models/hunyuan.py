"""Hunyuan with experts; transformers class `HunYuanMoEV1ForCausalLM`.

    h = h + attention(rms_norm(h));  q, k = rms_norm_per_head(rope(q)), rms_norm_per_head(rope(k))
    h = h + sum_k w_k expert_k(x) + shared(x),  x = rms_norm(h),  w = top_k(softmax(Wg x)) / sum

Differs from Llama:
- q and k are normed head by head, after the rotation; the rotary base is stretched once by `alpha` of the config;
- experts beside a shared MLP of the same width in every layer; the weights of a token's experts sum to one;
- `num_experts` and `moe_topk` may be lists with a number for each layer.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.configs.hf_config import read_facts, require, require_keys
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormLayer
from sglang.srt.models.common.moe import SparseMoE
from sglang.srt.models.common.weights import GATE_UP, QKV, ExpertNames, WeightMap
from sglang.srt.models.hunyuan_dense import HunYuanDenseV1Attention
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.utils import add_prefix


class HunYuanMoEV1DecoderLayer(PreNormLayer):
    """Pre-norm attention and experts around one residual stream."""

    def __init__(
        self,
        config: Any,
        layer_id: int = 0,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        _refuse(config, type(self).__name__)
        facts = read_facts(config)
        self.self_attn = HunYuanDenseV1Attention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            qkv_bias=facts.attention_bias,
            o_bias=facts.attention_bias,
            q_norm=RMSNorm(facts.head_dim, eps=facts.norm_eps),
            k_norm=RMSNorm(facts.head_dim, eps=facts.norm_eps),
        )
        self.mlp = SparseMoE(
            facts.hidden_size,
            config.intermediate_size,
            _of_layer(config.num_experts, layer_id),
            _of_layer(config.moe_topk, layer_id),
            layer_id,
            renormalize=True,
            shared_intermediate_size=config.intermediate_size,
            float32_router=True,
            quant_config=quant_config,
            prefix=add_prefix("mlp", prefix),
        )
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)


class HunYuanMoEV1Model(DecoderModel):
    layer_cls = HunYuanMoEV1DecoderLayer


class HunYuanMoEV1ForCausalLM(CausalLM):
    model_cls = HunYuanMoEV1Model
    weight_map = WeightMap(
        stacked=(*QKV, *GATE_UP),
        rename=WeightsMapper(
            orig_to_new_substr={
                ".query_layernorm.": ".q_norm.",
                ".key_layernorm.": ".k_norm.",
                ".gate.wg.": ".gate.",
                ".shared_mlp.": ".shared_experts.",
            }
        ),
        experts=ExpertNames(),
    )


def _refuse(config: Any, name: str) -> None:
    """Published configs have keys that transformers does not read; their values must be those it computes with."""
    require(read_facts(config), name, hidden_act=("silu",), mlp_bias=(False,))
    require_keys(
        config,
        name,
        use_qk_norm=(True,),
        use_cla=(False,),
        use_mixed_mlp_moe=(True,),
        num_shared_expert=(1,),
        moe_intermediate_size=(config.intermediate_size,),
        moe_layer_num_skipped=(0,),
        group_limited_greedy=(False,),
        norm_topk_prob=(True,),
    )


def _of_layer(value: int | list[int], layer_id: int) -> int:
    return value if isinstance(value, int) else value[layer_id]


EntryClass = HunYuanMoEV1ForCausalLM
