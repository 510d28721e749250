"""GPT-OSS; transformers class `GptOssForCausalLM` (arXiv 2508.10925).

    h = h + attention(rms_norm(h)), softmax over the scores and one learned sink for each head
    h = h + sum_k w_k (down_k(a) + b),  w = softmax(top_k(Wg x + b)),  a = g * sigmoid(alpha g) * (u + 1),
        g = min(gate_k(x), limit),  u = clamp(up_k(x), -limit, limit),  x = rms_norm(h)

Differs from Llama:
- attention sinks, biases everywhere, windows in every other layer;
- experts in the place of the MLP in every layer, with biases and a clamped activation;
- on disk gate and up of all experts are one tensor `[E, D, 2I]` whose columns alternate, in bfloat16 or as MXFP4, which is unpacked here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import read_facts, require, to_mapping
from sglang.srt.distributed import tensor_model_parallel_all_reduce
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.linear import ReplicatedLinear
from sglang.srt.layers.moe.ep_moe.layer import get_moe_impl_class
from sglang.srt.layers.moe.topk import TopK
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.layers.quantization.mxfp4 import dequant_mxfp4
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormLayer
from sglang.srt.models.common.sinks import SinkAttention
from sglang.srt.models.common.weights import QKV, ExpertNames, NamedTensor, WeightMap
from sglang.srt.utils import add_prefix

_ALPHA, _LIMIT = 1.702, 7.0  # of every published checkpoint; older configs do not say
_ALL_EXPERTS = re.compile(r"(.+\.experts)\.(gate_up_proj|down_proj)(_bias)?")
_MXFP4 = re.compile(r"(.+\.experts\.(?:gate_up|down)_proj)_(blocks|scales)")


class GptOssMoE(nn.Module):
    """Router and experts, all with biases."""

    def __init__(
        self,
        config: Any,
        layer_id: int,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        raw = to_mapping(config)
        hidden_size, num_experts = config.hidden_size, config.num_local_experts
        self.router = ReplicatedLinear(
            hidden_size, num_experts, bias=True, prefix=add_prefix("router", prefix)
        )
        # The softmax of the chosen logits is that of all of them, renormalised.
        self.topk = TopK(config.num_experts_per_tok, layer_id=layer_id, renormalize=True)
        self.experts = get_moe_impl_class(quant_config)(
            num_experts=num_experts,
            hidden_size=hidden_size,
            intermediate_size=config.intermediate_size,
            layer_id=layer_id,
            top_k=config.num_experts_per_tok,
            with_bias=True,
            gemm1_alpha=raw.get("swiglu_alpha", _ALPHA),
            gemm1_clamp_limit=raw.get("swiglu_limit", _LIMIT),
            quant_config=quant_config,
            prefix=add_prefix("experts", prefix),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [T, D] -> [T, D]
        router_logits, _ = self.router(x)  # [T, E]
        return tensor_model_parallel_all_reduce(self.experts(x, self.topk(x, router_logits)))


class GptOssDecoderLayer(PreNormLayer):
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
        layer_types = ("full_attention", "sliding_attention")
        require(facts, type(self).__name__, hidden_act=("silu",), layer_types=layer_types)
        self.self_attn = SinkAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            qkv_bias=facts.attention_bias,
            o_bias=facts.attention_bias,
            sliding_window=facts.window_of_layer(layer_id),
        )
        self.mlp = GptOssMoE(config, layer_id, quant_config, add_prefix("mlp", prefix))
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)


class GptOssModel(DecoderModel):
    layer_cls = GptOssDecoderLayer


def split_experts(name: str, tensor: torch.Tensor) -> Iterator[NamedTensor]:
    """Views of a tensor of all experts under the names of single ones, gate and up apart; other tensors pass."""
    found = _ALL_EXPERTS.fullmatch(name)
    if found is None:
        yield name, tensor
        return
    experts, part, bias = found.groups()
    for expert, value in enumerate(tensor):  # [in, out], or the bias [out]
        value = value if bias else value.t()
        kind = "bias" if bias else "weight"
        if part == "down_proj":
            yield f"{experts}.{expert}.down_proj.{kind}", value
        else:
            yield f"{experts}.{expert}.gate_proj.{kind}", value[0::2]
            yield f"{experts}.{expert}.up_proj.{kind}", value[1::2]


class GptOssForCausalLM(CausalLM):
    model_cls = GptOssModel
    weight_map = WeightMap(stacked=QKV, convert=split_experts, experts=ExpertNames())

    def load_weights(self, weights: Iterable[NamedTensor]) -> set[str]:
        return super().load_weights(unpack_mxfp4(weights))


def unpack_mxfp4(weights: Iterable[NamedTensor]) -> Iterator[NamedTensor]:
    """Every pair `X_blocks` `[E, out, in / 32, 16]` and `X_scales` as the tensor `X` `[E, in, out]`; half a pair passes as it is."""
    halves: dict[str, dict[str, NamedTensor]] = {}
    for name, tensor in weights:
        found = _MXFP4.fullmatch(name)
        if found is None:
            yield name, tensor
            continue
        pair = halves.setdefault(found[1], {})
        pair[found[2]] = name, tensor
        if len(pair) == 2:
            del halves[found[1]]
            yield found[1], dequant_mxfp4(pair["blocks"][1], pair["scales"][1]).transpose(1, 2)
    for pair in halves.values():
        yield from pair.values()


EntryClass = GptOssForCausalLM
