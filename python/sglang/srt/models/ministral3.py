"""Ministral 3 (text); transformers class `Ministral3ForCausalLM`.

    h = h + attention(rms_norm(h));  q = rope(q) * (1 + beta * log(1 + floor(position / original context)))
    h = h + down(silu(gate(x)) * up(x)),  x = rms_norm(h)

Differs from Llama:
- queries beyond the original context grow with their position (`llama_4_scaling_beta`);
- every layer may attend to a sliding window;
- the head dim is the config's own.
"""

from __future__ import annotations

from typing import Any

import torch

from sglang.srt.configs.hf_config import ModelFacts, read_facts, require
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormLayer
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.utils import add_prefix
from sglang.srt.utils.errors import ConfigError


class Ministral3Attention(GQAttention):
    """Attention whose queries are scaled by their position."""

    def __init__(self, *sizes: int, beta: float, original_context: int, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.beta = beta
        self.original_context = original_context

    def norm_and_rotate(
        self, positions: torch.Tensor, q: torch.Tensor, k: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        q, k = super().norm_and_rotate(positions, q, k)
        windows = torch.floor(positions.float() / self.original_context)
        scale = 1.0 + self.beta * torch.log1p(windows)  # [T]
        return q * scale.unsqueeze(-1).to(q.dtype), k


class Ministral3DecoderLayer(PreNormLayer):
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
        beta, original_context = _query_growth(facts)
        self.self_attn = Ministral3Attention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            sliding_window=facts.window_of_layer(layer_id),
            beta=beta,
            original_context=original_context,
        )
        self.mlp = GatedMLP.from_facts(facts, quant_config, add_prefix("mlp", prefix))
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)


class Ministral3Model(DecoderModel):
    layer_cls = Ministral3DecoderLayer


class Ministral3ForCausalLM(CausalLM):
    model_cls = Ministral3Model


def _query_growth(facts: ModelFacts) -> tuple[float, int]:
    """`llama_4_scaling_beta` and the context that it counts in."""
    params = {} if facts.rope is None else facts.rope.params
    keys = ("llama_4_scaling_beta", "original_max_position_embeddings")
    missing = [key for key in keys if params.get(key) is None]
    if missing:
        raise ConfigError(f"rope_parameters of a ministral3 config needs {', '.join(missing)}")
    return float(params[keys[0]]), int(params[keys[1]])


EntryClass = Ministral3ForCausalLM
