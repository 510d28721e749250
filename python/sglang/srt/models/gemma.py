"""Gemma 1; transformers class `GemmaForCausalLM` (arXiv 2403.08295).

    h = h + attention(norm(h));  h0 = embed(token) * sqrt(D)
    h = h + down(gelu(gate(x)) * up(x)),  x = norm(h)

Differs from Llama:
- norms multiply by `1 + w`;
- embeddings are scaled by the square root of the width, rounded to the model's dtype;
- the activation is GELU in its tanh form (published configs that say "gelu" mean it too);
- the head dim is the config's own; the head is the embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import GemmaRMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormLayer
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.utils import add_prefix


class GemmaDecoderLayer(PreNormLayer):
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
        require(facts, type(self).__name__, hidden_act=("gelu", "gelu_pytorch_tanh"))
        self.self_attn = GQAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            qkv_bias=facts.attention_bias,
            o_bias=facts.attention_bias,
        )
        self.mlp = GatedMLP(
            facts.hidden_size,
            facts.intermediate_size,
            "gelu_pytorch_tanh",
            quant_config=quant_config,
            prefix=add_prefix("mlp", prefix),
        )
        self.input_layernorm = GemmaRMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = GemmaRMSNorm(facts.hidden_size, eps=facts.norm_eps)


class GemmaModel(DecoderModel):
    layer_cls: type[nn.Module] = GemmaDecoderLayer

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__(config, quant_config, prefix)
        scale = read_facts(config).hidden_size ** 0.5
        self.embed_scale = float(torch.tensor(scale, dtype=torch.get_default_dtype(), device="cpu"))

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.embed_tokens(input_ids) * self.embed_scale

    def make_norm(self, hidden_size: int, eps: float) -> nn.Module:
        return GemmaRMSNorm(hidden_size, eps=eps)


class GemmaForCausalLM(CausalLM):
    model_cls = GemmaModel


EntryClass = GemmaForCausalLM
