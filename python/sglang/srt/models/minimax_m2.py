"""MiniMax-M2; transformers class `MiniMaxM2ForCausalLM`.

    h = h + attention(rms_norm(h));  q, k = rope(rms_norm(q)), rope(rms_norm(k))
    h = h + sum_k w_k w2_k(silu(w1_k x) * w3_k x),  x = rms_norm(h),  s = sigmoid(Wg x),  w = s[ids] / sum,  ids = top_k(s + b)

Differs from Llama:
- q and k are normed over their whole width, all heads together; the first part of a head is rotated;
- experts in the place of the MLP in every layer; a correction bias decides with the scores who is chosen;
- layers past `num_hidden_layers` in the checkpoint predict further tokens and are not loaded.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.configs.hf_config import read_facts, require, require_keys
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormExpertsLayer
from sglang.srt.models.common.moe import SparseMoE
from sglang.srt.models.common.qk_norm import ProjectionRMSNorm
from sglang.srt.models.common.weights import QKV, ExpertNames, WeightMap
from sglang.srt.models.olmo2 import Olmo2Attention
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.utils import add_prefix


class MiniMaxM2DecoderLayer(PreNormExpertsLayer):
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
        name = type(self).__name__
        require(facts, name, hidden_act=("silu",), layer_types=("full_attention",))
        require_keys(
            config,
            name,
            scoring_func=("sigmoid",),
            use_routing_bias=(True,),
            use_qk_norm=(True,),
            qk_norm_type=("per_layer",),
            attn_type_list=(1,),
            shared_intermediate_size=(0,),
        )
        eps = facts.norm_eps
        self.self_attn = Olmo2Attention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            q_norm=ProjectionRMSNorm(facts.num_attention_heads, facts.head_dim, eps),
            k_norm=ProjectionRMSNorm(facts.num_key_value_heads, facts.head_dim, eps),
        )
        self.block_sparse_moe = SparseMoE(
            facts.hidden_size,
            config.intermediate_size,
            config.num_local_experts,
            config.num_experts_per_tok,
            layer_id,
            renormalize=True,
            scoring_func="sigmoid",
            has_correction_bias=True,
            quant_config=quant_config,
            prefix=add_prefix("block_sparse_moe", prefix),
        )
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=eps)


class MiniMaxM2Model(DecoderModel):
    layer_cls = MiniMaxM2DecoderLayer


class MiniMaxM2ForCausalLM(CausalLM):
    model_cls = MiniMaxM2Model
    weight_map = WeightMap(
        stacked=QKV,
        rename=WeightsMapper(
            orig_to_new_substr={
                ".block_sparse_moe.e_score": ".block_sparse_moe.gate.e_score",
                # Checkpoints with all experts in one tensor call the block `mlp`.
                ".mlp.e_score": ".block_sparse_moe.gate.e_score",
                ".mlp.": ".block_sparse_moe.",
            }
        ),
        experts=ExpertNames(gate="w1", up="w3", down="w2"),
    )


EntryClass = MiniMaxM2ForCausalLM
