"""Grok-1, in either conversion of its weights: `Grok1ForCausalLM` and `Grok1ModelForCausalLM`.

    h = h + rms_norm(attention(rms_norm(h)));  scores = cap(a * q k^T);  h0 = e * embed(token)
    h = h + rms_norm(sum_k w_k w2_k(gelu(w1_k x) * w3_k x)),  x = rms_norm(h),  w = top_k(softmax(cap(Wg x)))
    logits = o * head(h);  cap(x) = c tanh(x / c)

Differs from Llama:
- `embedding_multiplier_scale` e, `output_multiplier_scale` o, `attn_output_multiplier` a (default 1 / sqrt(d));
- soft caps of the scores (`attn_logit_softcapping`, also `max_attn_value`; 30 where config.json is silent), and, where it
  says so, of the router's logits (`router_logit_softcapping`) and of the logits;
- experts in the place of the MLP, with GELU in its tanh form unless `hidden_act` says otherwise;
- what attention and experts give is normed too, before it joins the residual.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.moe.topk import TopK
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.moe import SparseMoE
from sglang.srt.models.common.norm import add_norm
from sglang.srt.models.common.weights import QKV, ExpertNames, WeightMap
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.utils import add_prefix
from sglang.srt.utils.errors import ConfigError


class Grok1Block(SparseMoE):
    """Routed experts; a token's weights are their shares of all experts."""

    def __init__(
        self, config: Any, layer_id: int, quant_config: QuantizationConfig | None, prefix: str
    ) -> None:
        super().__init__(
            config.hidden_size,
            config.intermediate_size,
            config.num_experts,
            config.num_experts_per_tok,
            layer_id,
            renormalize=False,
            float32_router=True,
            activation=config.hidden_act,
            quant_config=quant_config,
            prefix=prefix,
        )
        if config.router_logit_softcapping:
            route = partial(route_capped, cap=config.router_logit_softcapping)
            self.topk = TopK(
                config.num_experts_per_tok, layer_id=layer_id, custom_routing_function=route
            )


class Grok1DecoderLayer(nn.Module):
    """Attention and experts between norms, around one residual stream."""

    def __init__(
        self,
        config: Any,
        layer_id: int = 0,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        facts = read_facts(config)
        require(facts, type(self).__name__, hidden_act=("gelu", "gelu_pytorch_tanh"))
        if config.residual_moe:
            raise ConfigError(
                "Grok1 does not implement residual_moe (Grok-2): a dense MLP beside the experts"
            )
        self.self_attn = GQAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            scaling=config.attn_output_multiplier,
            logit_cap=config.attn_logit_softcapping,
        )
        self.block_sparse_moe = Grok1Block(
            config, layer_id, quant_config, add_prefix("block_sparse_moe", prefix)
        )
        self.pre_attn_norm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attn_norm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.pre_moe_norm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_moe_norm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)

    def forward(
        self,
        positions: torch.Tensor,  # [T]
        hidden_states: torch.Tensor,  # [T, D]
        forward_batch: ForwardBatch,
        residual: torch.Tensor | None,  # [T, D]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, residual = add_norm(self.pre_attn_norm, hidden_states, residual)
        x = self.post_attn_norm(self.self_attn(positions, x, forward_batch))
        x, residual = add_norm(self.pre_moe_norm, x, residual)
        return self.post_moe_norm(self.block_sparse_moe(x)), residual


class Grok1Model(DecoderModel):
    layer_cls = Grok1DecoderLayer

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.embed_tokens(input_ids) * self.config.embedding_multiplier_scale


class Grok1ForCausalLM(CausalLM):
    model_cls = Grok1Model
    weight_map = WeightMap(
        stacked=QKV,
        rename=WeightsMapper(  # the one conversion's names to the other's
            orig_to_new_substr={".attn.": ".self_attn.", ".moe_block.": ".block_sparse_moe."},
            orig_to_new_suffix={
                "norm.scale": "norm.weight",
                ".linear.weight": ".w1.weight",
                ".linear_v.weight": ".w3.weight",
                ".linear_1.weight": ".w2.weight",
            },
        ),
        experts=ExpertNames(gate="w1", up="w3", down="w2"),
    )

    def logit_scale(self, config: Any) -> float:
        return config.output_multiplier_scale


class Grok1ModelForCausalLM(Grok1ForCausalLM):
    pass


def route_capped(
    hidden_states: torch.Tensor,
    gating_output: torch.Tensor,  # [T, E]
    topk: int,
    renormalize: bool,
    *,
    cap: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and ids `[T, topk]` of the softmax over all experts' soft-capped logits."""
    logits = cap * torch.tanh(gating_output.float() / cap)
    weights, ids = logits.softmax(dim=-1).topk(topk, dim=-1)
    return weights, ids


EntryClass = [Grok1ForCausalLM, Grok1ModelForCausalLM]
