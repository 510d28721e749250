"""AFMoE, the Trinity models; transformers class `AfmoeForCausalLM`.

    h = h + rms_norm(Wo (sigmoid(Wg x) * heads(x))),  x = rms_norm(h);  q, k = rope(rms_norm_per_head(q)), rope(rms_norm_per_head(k))
    h = h + rms_norm(f * sum_k w_k expert_k(x) + shared(x)),  x = rms_norm(h),  s = sigmoid(Wr x),  w = s[ids] / sum,  ids = top_k(s + b)

Differs from Llama:
- four norms to a layer; q and k are normed head by head; what attention read is gated before the output projection;
- windows where `layer_types` says, and full layers have no positions;
- behind the first `num_dense_layers` layers experts in the place of the MLP, beside shared experts that are one MLP;
- embeddings are scaled by the root of the width where `mup_enabled` is on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import ModelFacts, read_facts, require, require_keys
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.linear import ColumnParallelLinear
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.common.moe import SparseMoE
from sglang.srt.models.common.norm import add_norm
from sglang.srt.models.common.weights import GATE_UP, QKV, ExpertNames, WeightMap
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.utils import add_prefix


class AfmoeAttention(GQAttention):
    """Attention whose result is gated by the layer's input, number by number."""

    def __init__(self, hidden_size: int, num_heads: int, *sizes: int, **options: Any) -> None:
        super().__init__(hidden_size, num_heads, *sizes, **options)
        self.gate_proj = ColumnParallelLinear(
            hidden_size,
            num_heads * self.head_dim,
            bias=False,
            quant_config=options["quant_config"],
            prefix=add_prefix("gate_proj", options["prefix"]),
        )

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, forward_batch: ForwardBatch
    ) -> torch.Tensor:  # [T], [T, D] -> [T, D]
        qkv, _ = self.qkv_proj(hidden_states)
        gate, _ = self.gate_proj(hidden_states)  # [T, H * d]
        q, k, v = self.split(qkv)
        q, k = self.norm_and_rotate(positions, q, k)
        output, _ = self.o_proj(self.attn(q, k, v, forward_batch) * gate.sigmoid())
        return output


class AfmoeDecoderLayer(nn.Module):
    """Attention and MLP or experts, each between two norms."""

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
        layer_types = ("full_attention", "sliding_attention")
        require(facts, name, hidden_act=("silu",), layer_types=layer_types)
        require_keys(
            config,
            name,
            score_func=("sigmoid",),
            route_norm=(True,),
            num_expert_groups=(1,),
            n_group=(1,),
        )
        self.self_attn = AfmoeAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            use_rope=facts.layer_types[layer_id] == "sliding_attention",
            sliding_window=facts.window_of_layer(layer_id),
            qkv_bias=facts.attention_bias,
            o_bias=facts.attention_bias,
            q_norm=RMSNorm(facts.head_dim, eps=facts.norm_eps),
            k_norm=RMSNorm(facts.head_dim, eps=facts.norm_eps),
        )
        self.mlp = _mlp(config, facts, layer_id, quant_config, add_prefix("mlp", prefix))
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.pre_mlp_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_mlp_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)

    def forward(
        self,
        positions: torch.Tensor,  # [T]
        hidden_states: torch.Tensor,  # [T, D]
        forward_batch: ForwardBatch,
        residual: torch.Tensor | None,  # [T, D]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, residual = add_norm(self.input_layernorm, hidden_states, residual)
        x = self.post_attention_layernorm(self.self_attn(positions, x, forward_batch))
        x, residual = add_norm(self.pre_mlp_layernorm, x, residual)
        return self.post_mlp_layernorm(self.mlp(x)), residual


class AfmoeModel(DecoderModel):
    layer_cls = AfmoeDecoderLayer

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        scale = self.config.hidden_size**0.5 if self.config.mup_enabled else 1.0
        return self.embed_tokens(input_ids) * scale


class AfmoeForCausalLM(CausalLM):
    model_cls = AfmoeModel
    weight_map = WeightMap(
        stacked=(*QKV, *GATE_UP),
        rename=WeightsMapper(
            orig_to_new_substr={
                ".mlp.router.gate.": ".mlp.gate.",
                ".mlp.expert_bias": ".mlp.gate.e_score_correction_bias",
            }
        ),
        experts=ExpertNames(),
    )


def _mlp(
    config: Any,
    facts: ModelFacts,
    layer_id: int,
    quant_config: QuantizationConfig | None,
    prefix: str,
) -> nn.Module:
    if layer_id < config.num_dense_layers:
        return GatedMLP.from_facts(facts, quant_config, prefix)
    return SparseMoE(
        facts.hidden_size,
        config.moe_intermediate_size,
        config.num_experts,
        config.num_experts_per_tok,
        layer_id,
        renormalize=True,
        scoring_func="sigmoid",
        has_correction_bias=True,
        routed_scaling_factor=config.route_scale,
        shared_intermediate_size=config.moe_intermediate_size * config.num_shared_experts or None,
        quant_config=quant_config,
        prefix=prefix,
    )


EntryClass = AfmoeForCausalLM
