"""Apertus; transformers class `ApertusForCausalLM` (arXiv 2509.14233).

    h = h + attention(rms_norm(h));  q, k = rope(rms_norm_per_head(q)), rope(rms_norm_per_head(k))
    h = h + down(xielu(up(rms_norm(h))))

Differs from Llama:
- a plain MLP with xIELU, an activation with two learned slopes per layer;
- q and k are normed head by head before the rotation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.activation import XIELU
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.mlp import PlainMLP
from sglang.srt.models.common.norm import add_norm
from sglang.srt.models.common.weights import QKV, NamedTensor, WeightMap
from sglang.srt.utils import add_prefix
from sglang.srt.utils.errors import ConfigError

_XIELU_CONSTANTS = {"beta": 0.5, "eps": -1e-6}


class ApertusDecoderLayer(nn.Module):
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
        require(facts, type(self).__name__, hidden_act=("xielu",))
        self.self_attn = GQAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            qkv_bias=facts.attention_bias,
            o_bias=facts.attention_bias,
            q_norm=RMSNorm(facts.head_dim, eps=facts.norm_eps),
            k_norm=RMSNorm(facts.head_dim, eps=facts.norm_eps),
        )
        self.mlp = PlainMLP(
            facts.hidden_size,
            facts.intermediate_size,
            XIELU(dtype=torch.get_default_dtype()),
            quant_config,
            add_prefix("mlp", prefix),
        )
        self.attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.feedforward_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)

    def forward(
        self,
        positions: torch.Tensor,  # [T]
        hidden_states: torch.Tensor,  # [T, D]
        forward_batch: ForwardBatch,
        residual: torch.Tensor | None,  # [T, D]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, residual = add_norm(self.attention_layernorm, hidden_states, residual)
        x = self.self_attn(positions, x, forward_batch)
        x, residual = add_norm(self.feedforward_layernorm, x, residual)
        return self.mlp(x), residual


class ApertusModel(DecoderModel):
    layer_cls = ApertusDecoderLayer


def _check_constants(name: str, tensor: torch.Tensor) -> Iterator[NamedTensor]:
    """xIELU's two constants are in the checkpoint too: not loaded, but they must be the ones computed with."""
    constant = _XIELU_CONSTANTS.get(name.rpartition(".mlp.act_fn.")[2])
    if constant is None:
        yield name, tensor
    elif abs(float(tensor) - constant) > 0.01 * abs(constant):
        raise ConfigError(f"{name} is {float(tensor)}; xIELU is implemented with {constant}")


class ApertusForCausalLM(CausalLM):
    model_cls = ApertusModel
    weight_map = WeightMap(stacked=QKV, convert=_check_constants)


EntryClass = ApertusForCausalLM
