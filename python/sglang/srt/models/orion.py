"""Orion 14B; published as code, architecture `OrionForCausalLM` (arXiv 2401.12246).

    h = h + attention(layer_norm(h))
    h = h + down(silu(gate(x)) * up(x)),  x = layer_norm(h)

Differs from Llama: layer norms with a bias, whose epsilon the config calls `rms_norm_eps`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from sglang.srt.configs.hf_config import read_facts
from sglang.srt.layers.layernorm import LayerNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel


class OrionDecoderLayer(LlamaDecoderLayer):
    """Llama's layer between layer norms."""

    input_layernorm: Any
    post_attention_layernorm: Any

    def __init__(
        self,
        config: Any,
        layer_id: int = 0,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__(config, layer_id, quant_config, prefix)
        facts = read_facts(config)
        self.input_layernorm = LayerNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = LayerNorm(facts.hidden_size, eps=facts.norm_eps)


class OrionModel(LlamaModel):
    layer_cls = OrionDecoderLayer

    def make_norm(self, hidden_size: int, eps: float) -> nn.Module:
        return LayerNorm(hidden_size, eps=eps)


class OrionForCausalLM(LlamaForCausalLM):
    model_cls = OrionModel


EntryClass = OrionForCausalLM
