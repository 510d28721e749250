"""MiniCPM 1 and 2 (dense); published as code, architecture `MiniCPMForCausalLM` (arXiv 2404.06395).

    h = h + r * attention(rms_norm(h));  h0 = e * embed(token);  r = scale_depth / sqrt(layers)
    h = h + r * down(silu(gate(x)) * up(x)),  x = rms_norm(h);  logits = head(h) * dim_model_base / width

Differs from Llama by three constants of the config (`scale_emb` is e); the head is the embedding unless the config says otherwise.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from sglang.srt.configs.hf_config import read_facts
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.norm import add_norm
from sglang.srt.models.llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from sglang.srt.utils.errors import ConfigError

# Variants under the same architecture string whose layers are other ones.
_REFUSED = {"num_experts": "experts", "sparse_config": "sparse attention"}


class MiniCPMDecoderLayer(LlamaDecoderLayer):
    """Llama's layer whose branches are scaled."""

    def __init__(
        self,
        config: Any,
        layer_id: int = 0,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__(config, layer_id, quant_config, prefix)
        self.scale = config.scale_depth / math.sqrt(read_facts(config).num_hidden_layers)

    def forward(
        self,
        positions: torch.Tensor,  # [T]
        hidden_states: torch.Tensor,  # [T, D]
        forward_batch: ForwardBatch,
        residual: torch.Tensor | None,  # [T, D]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, residual = add_norm(self.input_layernorm, hidden_states, residual)
        x = self.self_attn(positions, x, forward_batch) * self.scale
        x, residual = add_norm(self.post_attention_layernorm, x, residual)
        return self.mlp(x) * self.scale, residual


class MiniCPMModel(LlamaModel):
    layer_cls = MiniCPMDecoderLayer

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.embed_tokens(input_ids) * self.config.scale_emb


class MiniCPMForCausalLM(LlamaForCausalLM):
    model_cls = MiniCPMModel

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        keys = config.to_dict()
        for key, meaning in _REFUSED.items():
            if keys.get(key):
                raise ConfigError(
                    f"MiniCPMForCausalLM does not implement {meaning} ({key}={keys[key]!r})"
                )
        super().__init__(config, quant_config, prefix)

    def logit_scale(self, config: Any) -> float:
        return config.dim_model_base / read_facts(config).hidden_size


EntryClass = MiniCPMForCausalLM
