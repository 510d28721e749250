"""OLMo 1; transformers class `OlmoForCausalLM` (arXiv 2402.00838).

    h = h + attention(norm(h));  norm(h) = (h - mean(h)) / sqrt(var(h) + 1e-5)
    h = h + down(silu(gate(x)) * up(x)),  x = norm(h)

Differs from Llama:
- layer norms without any parameter;
- q, k and v may be clipped to `[-clip_qkv, clip_qkv]`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import LayerNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormLayer
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.utils import add_prefix

_NORM_EPS = 1e-5


class OlmoAttention(GQAttention):
    """Attention with clipped projections; `clip_qkv` None clips nothing."""

    def __init__(self, *sizes: int, clip_qkv: float | None, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.clip_qkv = clip_qkv

    def split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.clip_qkv is not None:
            qkv = qkv.clamp(-self.clip_qkv, self.clip_qkv)
        return super().split(qkv)


class OlmoDecoderLayer(PreNormLayer):
    """Pre-norm attention and MLP around one residual stream."""

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
        self.self_attn = OlmoAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            qkv_bias=facts.attention_bias,
            o_bias=facts.attention_bias,
            clip_qkv=config.clip_qkv,
        )
        self.mlp = GatedMLP.from_facts(facts, quant_config, add_prefix("mlp", prefix))
        self.input_layernorm = _norm(facts.hidden_size)
        self.post_attention_layernorm = _norm(facts.hidden_size)


class OlmoModel(DecoderModel):
    layer_cls = OlmoDecoderLayer

    def make_norm(self, hidden_size: int, eps: float) -> nn.Module:
        return _norm(hidden_size)


class OlmoForCausalLM(CausalLM):
    model_cls = OlmoModel


def _norm(hidden_size: int) -> LayerNorm:
    return LayerNorm(hidden_size, eps=_NORM_EPS, elementwise_affine=False)


EntryClass = OlmoForCausalLM
