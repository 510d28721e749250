"""Qwen1.5 and Qwen2 with experts; transformers class `Qwen2MoeForCausalLM`.

    h = h + attention(rms_norm(h));  q, k, v = Wqkv x + b
    h = h + sum_k w_k expert_k(x) + sigmoid(v x) shared(x),  x = rms_norm(h),  w = top_k(softmax(Wg x))

Differs from Llama:
- q, k and v have a bias unless `qkv_bias` is off; windows in the layers that `layer_types` names;
- experts in the place of the MLP in every `decoder_sparse_step`-th layer that is not in `mlp_only_layers`, beside
  one shared expert that every token uses;
- `norm_topk_prob`: the weights of a token's experts sum to one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import ModelFacts, read_facts, require
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.linear import ReplicatedLinear
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormLayer
from sglang.srt.models.common.mlp import CommunicatedMLP, GatedMLP
from sglang.srt.models.common.moe import SparseMoE
from sglang.srt.models.common.weights import GATE_UP, QKV, ExpertNames, WeightMap
from sglang.srt.utils import add_prefix


class Qwen2MoeMLP(CommunicatedMLP):
    """The MLP under the name that other model files import."""

    def forward(
        self,
        x: torch.Tensor,  # [T, D]
        should_allreduce_fusion: bool = False,
        use_reduce_scatter: bool = False,
    ) -> torch.Tensor:
        return self.multiply(x, skip_all_reduce=should_allreduce_fusion or use_reduce_scatter)


class Qwen2MoeSparseMoeBlock(SparseMoE):
    """Routed experts and a gated shared one; ranks are added up once, for both."""

    def __init__(
        self,
        config: Any,
        layer_id: int,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__(
            config.hidden_size,
            config.moe_intermediate_size,
            config.num_experts,
            config.num_experts_per_tok,
            layer_id,
            renormalize=config.norm_topk_prob,
            quant_config=quant_config,
            prefix=prefix,
        )
        self.shared_expert = GatedMLP(
            config.hidden_size,
            config.shared_expert_intermediate_size,
            config.hidden_act,
            quant_config,
            add_prefix("shared_expert", prefix),
            reduce_results=False,
        )
        self.shared_expert_gate = ReplicatedLinear(
            config.hidden_size, 1, bias=False, prefix=add_prefix("shared_expert_gate", prefix)
        )

    def partial_sum(self, x: torch.Tensor) -> torch.Tensor:  # [T, D] -> [T, D]
        share, _ = self.shared_expert_gate(x)  # [T, 1]
        shared = share.sigmoid() * self.shared_expert(x)
        return super().partial_sum(x) + shared


class Qwen2MoeDecoderLayer(PreNormLayer):
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
        require(
            facts,
            type(self).__name__,
            hidden_act=("silu",),
            layer_types=("full_attention", "sliding_attention"),
        )
        self.self_attn = GQAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            qkv_bias=config.qkv_bias,
            sliding_window=facts.window_of_layer(layer_id),
        )
        self.mlp = _mlp(config, facts, layer_id, quant_config, add_prefix("mlp", prefix))
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)


class Qwen2MoeModel(DecoderModel):
    layer_cls = Qwen2MoeDecoderLayer


class Qwen2MoeForCausalLM(CausalLM):
    model_cls = Qwen2MoeModel
    weight_map = WeightMap(stacked=(*QKV, *GATE_UP), experts=ExpertNames())


def has_experts(config: Any, layer_id: int) -> bool:
    """Whether a layer of Qwen2 or Qwen3 has experts instead of one MLP."""
    if layer_id in config.mlp_only_layers or config.num_experts == 0:
        return False
    return (layer_id + 1) % config.decoder_sparse_step == 0


def _mlp(
    config: Any,
    facts: ModelFacts,
    layer_id: int,
    quant_config: QuantizationConfig | None,
    prefix: str,
) -> nn.Module:
    if has_experts(config, layer_id):
        return Qwen2MoeSparseMoeBlock(config, layer_id, quant_config, prefix)
    return GatedMLP.from_facts(facts, quant_config, prefix)


EntryClass = Qwen2MoeForCausalLM
