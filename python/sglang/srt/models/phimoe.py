"""Phi-3.5-MoE; transformers class `PhimoeForCausalLM`, published as `PhiMoEForCausalLM` (arXiv 2404.14219).

    h = h + attention(layer_norm(h))
    h = h + sum_k w_k w2_k(silu(w1_k x) * w3_k x),  x = layer_norm(h)

Differs from Llama:
- layer norms; `attention_bias` and `lm_head_bias`;
- two experts in the place of the MLP, weighted by SparseMixer (arXiv 2409.12136): a choice's weight is its share among
  the experts whose scores are near its own, the first choice being out of the second's race;
- long contexts by LongRoPE, with magnitudes of its own for the short and the long factors.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import LayerNorm
from sglang.srt.layers.moe.topk import TopK
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormExpertsLayer
from sglang.srt.models.common.moe import SparseMoE
from sglang.srt.models.common.weights import QKV, ExpertNames, WeightMap
from sglang.srt.utils import add_prefix
from sglang.srt.utils.errors import ConfigError


class PhimoeBlock(SparseMoE):
    """Two experts for each token, chosen and weighted by SparseMixer."""

    def __init__(
        self, config: Any, layer_id: int, quant_config: QuantizationConfig | None, prefix: str
    ) -> None:
        top_k = config.num_experts_per_tok
        if top_k != 2:
            raise ConfigError(f"Phimoe has num_experts_per_tok=2, not {top_k}")
        super().__init__(
            config.hidden_size,
            config.intermediate_size,
            config.num_local_experts,
            top_k,
            layer_id,
            renormalize=False,
            quant_config=quant_config,
            prefix=prefix,
        )
        route = partial(route_sparsemixer, tolerance=2 * config.router_jitter_noise)
        self.topk = TopK(top_k, layer_id=layer_id, custom_routing_function=route)


class PhimoeDecoderLayer(PreNormExpertsLayer):
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
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            qkv_bias=facts.attention_bias,
            o_bias=facts.attention_bias,
            sliding_window=facts.window_of_layer(layer_id),
        )
        self.block_sparse_moe = PhimoeBlock(
            config, layer_id, quant_config, add_prefix("block_sparse_moe", prefix)
        )
        self.input_layernorm = LayerNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = LayerNorm(facts.hidden_size, eps=facts.norm_eps)


class PhimoeModel(DecoderModel):
    layer_cls = PhimoeDecoderLayer

    def make_norm(self, hidden_size: int, eps: float) -> nn.Module:
        return LayerNorm(hidden_size, eps=eps)


class PhimoeForCausalLM(CausalLM):
    model_cls = PhimoeModel
    weight_map = WeightMap(stacked=QKV, experts=ExpertNames(gate="w1", up="w3", down="w2"))

    def _init_head(self, vocab_size: int, hidden_size: int, prefix: str) -> nn.Module:
        self.head_bias = self.config.lm_head_bias
        return super()._init_head(vocab_size, hidden_size, prefix)


def route_sparsemixer(
    hidden_states: torch.Tensor,
    gating_output: torch.Tensor,  # [T, E]
    topk: int,
    renormalize: bool,
    *,
    tolerance: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and ids `[T, topk]`. An expert takes part in a choice while its score is less than `tolerance` below the best
    one, relative to the larger of that one and the expert's own magnitude."""
    scores = gating_output.float()
    left, weights, ids = scores, [], []
    for _ in range(topk):
        best, chosen = left.max(dim=-1, keepdim=True)  # [T, 1]
        distance = (best - scores) / scores.abs().clamp(min=best)
        shares = left.masked_fill(distance > tolerance, -torch.inf).softmax(dim=-1)
        weights.append(shares.gather(1, chosen))
        ids.append(chosen)
        left = left.scatter(1, chosen, -torch.inf)
    return torch.cat(weights, dim=1), torch.cat(ids, dim=1)


EntryClass = PhimoeForCausalLM
