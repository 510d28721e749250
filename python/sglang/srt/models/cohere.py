"""Command-R, Command-R+ and Aya 23; transformers class `CohereForCausalLM`.

    x = layer_norm(h);  h = h + attention(x) + down(silu(gate(x)) * up(x))
    logits = logit_scale * head(layer_norm(h))

Differs from Llama:
- attention and MLP read the same norm and their outputs are added together;
- layer norms with a weight and no bias;
- rotary positions turn neighbouring dimensions;
- with `use_qk_norm` every head of q and k has a layer norm of its own;
- logits are scaled, the head is the embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import LayerNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.common.norm import add_norm
from sglang.srt.models.common.qk_norm import PerHeadLayerNorm
from sglang.srt.utils import add_prefix


class CohereAttention(GQAttention):
    """Attention whose norms take all heads at once, because each has its own weight."""

    def norm_heads(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.q_norm is None or self.k_norm is None:
            return q, k
        return self.q_norm(q), self.k_norm(k)


class CohereDecoderLayer(nn.Module):
    """Attention and MLP side by side."""

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
        norms: dict[str, Any] = {}
        if config.use_qk_norm:
            sizes = facts.head_dim, facts.norm_eps
            norms["q_norm"] = PerHeadLayerNorm(facts.num_attention_heads, *sizes)
            norms["k_norm"] = PerHeadLayerNorm(facts.num_key_value_heads, *sizes)
        self.self_attn = CohereAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            rope_is_neox_style=False,
            qkv_bias=facts.attention_bias,
            o_bias=facts.attention_bias,
            **norms,
        )
        self.mlp = GatedMLP.from_facts(facts, quant_config, add_prefix("mlp", prefix))
        self.input_layernorm = LayerNorm(facts.hidden_size, eps=facts.norm_eps, bias=False)

    def forward(
        self,
        positions: torch.Tensor,  # [T]
        hidden_states: torch.Tensor,  # [T, D]
        forward_batch: ForwardBatch,
        residual: torch.Tensor | None,  # [T, D]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, residual = add_norm(self.input_layernorm, hidden_states, residual)
        return self.self_attn(positions, x, forward_batch) + self.mlp(x), residual


class CohereModel(DecoderModel):
    layer_cls: type[nn.Module] = CohereDecoderLayer

    def make_norm(self, hidden_size: int, eps: float) -> nn.Module:
        return LayerNorm(hidden_size, eps=eps, bias=False)


class CohereForCausalLM(CausalLM):
    model_cls: type[nn.Module] = CohereModel

    def logit_scale(self, config: Any) -> float:
        return config.logit_scale


EntryClass = CohereForCausalLM
