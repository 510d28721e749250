"""DBRX; transformers class `DbrxForCausalLM`.

    h = h + attention(layer_norm(h));  q, k, v = clip(Wqkv x)
    h = h + sum_k w_k w2_k(silu(w1_k x) * v1_k x),  x = layer_norm(h),  w = top_k(softmax(Wg x)) / sum

Differs from Llama:
- layer norms without bias; q, k and v clipped to `[-clip_qkv, clip_qkv]`;
- experts in the place of the MLP; `moe_normalize_expert_weights` None leaves a token's weights as they are;
- the checkpoint holds an `[E * I, D]` tensor for each of the experts' matrices, w2 transposed;
- sizes are in `attn_config` and `ffn_config`; the rotary base is `attn_config.rope_theta`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import ModelFacts, RopeFacts, read_facts, to_mapping
from sglang.srt.layers.layernorm import LayerNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.moe import SparseMoE
from sglang.srt.models.common.norm import add_norm
from sglang.srt.models.common.weights import ExpertNames, NamedTensor, WeightMap
from sglang.srt.models.olmo import OlmoAttention
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.utils import add_prefix
from sglang.srt.utils.errors import ConfigError

_NORM_EPS = 1e-5


class DbrxBlock(nn.Module):
    """Pre-norm attention and experts around one residual stream."""

    def __init__(
        self,
        config: Any,
        layer_id: int = 0,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        facts = _dbrx_facts(config)
        self.self_attn = OlmoAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            clip_qkv=config.attn_config.clip_qkv,
        )
        experts = config.ffn_config
        self.ffn = SparseMoE(
            facts.hidden_size,
            experts.ffn_hidden_size,
            experts.moe_num_experts,
            experts.moe_top_k,
            layer_id,
            renormalize=experts.moe_normalize_expert_weights is not None,
            quant_config=quant_config,
            prefix=add_prefix("ffn", prefix),
        )
        self.norm_1 = LayerNorm(facts.hidden_size, eps=_NORM_EPS, bias=False)
        self.norm_2 = LayerNorm(facts.hidden_size, eps=_NORM_EPS, bias=False)

    def forward(
        self,
        positions: torch.Tensor,  # [T]
        hidden_states: torch.Tensor,  # [T, D]
        forward_batch: ForwardBatch,
        residual: torch.Tensor | None,  # [T, D]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, residual = add_norm(self.norm_1, hidden_states, residual)
        x = self.self_attn(positions, x, forward_batch)
        x, residual = add_norm(self.norm_2, x, residual)
        return self.ffn(x), residual


class DbrxModel(DecoderModel):
    layer_cls = DbrxBlock

    def make_norm(self, hidden_size: int, eps: float) -> nn.Module:
        return LayerNorm(hidden_size, eps=_NORM_EPS, bias=False)


class DbrxForCausalLM(CausalLM):
    model_cls = DbrxModel
    packed_modules_mapping = {"qkv_proj": ["Wqkv"]}

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__(config, quant_config, prefix)
        self.weight_map = WeightMap(
            rename=_NAMES,
            convert=partial(_split_experts, config.ffn_config.moe_num_experts),
            experts=ExpertNames(gate="w1", up="v1", down="w2"),
        )


_NAMES = WeightsMapper(
    orig_to_new_substr={
        ".norm_attn_norm.attn.Wqkv.": ".self_attn.qkv_proj.",
        ".norm_attn_norm.attn.out_proj.": ".self_attn.o_proj.",
        ".norm_attn_norm.norm_": ".norm_",
        ".ffn.router.layer.": ".ffn.gate.",
        ".ffn.experts.mlp.": ".ffn.experts.",
    },
    orig_to_new_prefix={
        "transformer.blocks.": "model.layers.",
        "transformer.wte.": "model.embed_tokens.",
        "transformer.norm_f.": "model.norm.",
    },
)


def _split_experts(num_experts: int, name: str, tensor: torch.Tensor) -> Iterator[NamedTensor]:
    """A tensor `[E * I, D]` as the matrices of single experts; other tensors pass."""
    experts, marker, part = name.rpartition(".ffn.experts.")
    if not marker:
        yield name, tensor
        return
    for expert, matrix in enumerate(tensor.chunk(num_experts)):  # [I, D]
        yield f"{experts}{marker}{expert}.{part}.weight", matrix.t() if part == "w2" else matrix


def _dbrx_facts(config: Any) -> ModelFacts:
    """Facts with the rotary base of `attn_config`, where published files have it.

    Raises ConfigError for an activation or a norm of the experts' weights that is not implemented.
    """
    experts = config.ffn_config
    activation, norm = experts.ffn_act_fn["name"], experts.moe_normalize_expert_weights
    if activation != "silu" or norm not in (None, 1):
        raise ConfigError(
            "DBRX is implemented for ffn_act_fn 'silu' and moe_normalize_expert_weights 1 or None, "
            f"not {activation!r} and {norm}"
        )
    facts = read_facts(config)
    theta = to_mapping(config.attn_config).get("rope_theta")
    if theta is None:
        return facts
    return dataclasses.replace(facts, rope=RopeFacts("default", float(theta)))


EntryClass = DbrxForCausalLM
