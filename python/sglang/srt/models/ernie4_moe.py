"""ERNIE 4.5 with experts; transformers class `Ernie4_5_MoeForCausalLM`.

    h = h + attention(rms_norm(h))
    h = h + sum_k w_k expert_k(x) + shared(x),  x = rms_norm(h)
    s = softmax(Wg x);  ids = top_k(s + b);  w = s[ids] / max(sum s[ids], moe_norm_min)

Differs from ERNIE 4.5 (dense):
- experts in every `moe_layer_interval`-th layer from `moe_layer_start_index` to `moe_layer_end_index`, beside
  `moe_num_shared_experts` that every token uses, stored as one MLP;
- a correction b of the scores, stored as `moe_statics`, takes part in the choice only;
- with `use_bias` the head has a bias too.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from sglang.srt.layers.moe.topk import TopK
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.causal_lm import CausalLM
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.common.moe import SparseMoE
from sglang.srt.models.common.weights import GATE_UP, QKV, ExpertNames, NamedTensor, WeightMap
from sglang.srt.models.ernie4 import Ernie4_5DecoderLayer, Ernie4_5Model
from sglang.srt.utils import add_prefix
from sglang.srt.utils.errors import ConfigError


class Ernie4_5MoeBlock(SparseMoE):
    """Routed experts, their weights' sum bounded from below, and the shared ones."""

    def __init__(
        self, config: Any, layer_id: int, quant_config: QuantizationConfig | None, prefix: str
    ) -> None:
        super().__init__(
            config.hidden_size,
            config.moe_intermediate_size,
            config.moe_num_experts,
            config.moe_k,
            layer_id,
            renormalize=True,
            has_correction_bias=True,
            float32_router=True,
            quant_config=quant_config,
            prefix=prefix,
        )
        correction = self.gate.e_score_correction_bias
        assert correction is not None
        self.topk = TopK(
            config.moe_k,
            layer_id=layer_id,
            custom_routing_function=partial(
                route_floored, correction=correction, floor=config.moe_norm_min
            ),
        )
        if config.moe_num_shared_experts:
            self.shared_experts = GatedMLP(
                config.hidden_size,
                config.moe_intermediate_size * config.moe_num_shared_experts,
                config.hidden_act,
                quant_config,
                add_prefix("shared_experts", prefix),
                reduce_results=False,
                bias=config.use_bias,
            )


class Ernie4_5MoeDecoderLayer(Ernie4_5DecoderLayer):
    def make_mlp(
        self, config: Any, layer_id: int, quant_config: QuantizationConfig | None, prefix: str
    ) -> nn.Module:
        is_inside = config.moe_layer_start_index <= layer_id <= config.moe_layer_end_index
        if is_inside and (layer_id + 1) % config.moe_layer_interval == 0:
            return Ernie4_5MoeBlock(config, layer_id, quant_config, prefix)
        return super().make_mlp(config, layer_id, quant_config, prefix)


class Ernie4_5MoeModel(Ernie4_5Model):
    layer_cls = Ernie4_5MoeDecoderLayer


def _place_correction(name: str, tensor: torch.Tensor) -> Iterator[NamedTensor]:
    """The correction is stored as `[1, E]` beside the router."""
    if name.endswith(".moe_statics.e_score_correction_bias"):
        name, tensor = name.replace(".moe_statics.", ".gate."), tensor.flatten()
    yield name, tensor


class Ernie4_5_MoeForCausalLM(CausalLM):
    model_cls = Ernie4_5MoeModel
    weight_map = WeightMap(
        stacked=(*QKV, *GATE_UP),
        skip=(r"^model\.mtp_",),  # a draft model's
        convert=_place_correction,
        experts=ExpertNames(),
    )

    def _init_head(self, vocab_size: int, hidden_size: int, prefix: str) -> nn.Module:
        if self.config.use_bias and self.is_tied:
            raise ConfigError(
                "Ernie4_5_Moe does not implement use_bias=True with tie_word_embeddings=True"
            )
        self.head_bias = self.config.use_bias
        return super()._init_head(vocab_size, hidden_size, prefix)


def route_floored(
    hidden_states: torch.Tensor,
    gating_output: torch.Tensor,  # [T, E]
    topk: int,
    renormalize: bool,
    *,
    correction: torch.Tensor,  # [E]
    floor: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and ids `[T, topk]` of the best corrected softmax scores; weights are the scores over their sum, or over
    `floor` when that is larger."""
    scores = gating_output.float().softmax(dim=-1)
    ids = (scores + correction).topk(topk, dim=-1).indices
    weights = scores.gather(1, ids)
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=floor), ids


EntryClass = Ernie4_5_MoeForCausalLM
