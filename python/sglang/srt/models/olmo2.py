"""OLMo 2 and OLMo 3; transformers classes `Olmo2ForCausalLM`, `Olmo3ForCausalLM` (arXiv 2501.00656).

    h = h + rms_norm(attention(h));  q, k = rope(rms_norm(q)), rope(rms_norm(k))
    h = h + rms_norm(down(silu(gate(h)) * up(h)))

Differs from Llama:
- the branches read the residual itself; their outputs are normed;
- q and k are normed over their whole width, all heads together;
- OLMo 3: three windowed layers to each full one, and rotary settings that may differ between the two types.
"""

from __future__ import annotations

from typing import Any

import torch

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PostNormLayer
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.common.qk_norm import ProjectionRMSNorm
from sglang.srt.utils import add_prefix


class Olmo2Attention(GQAttention):
    """Attention whose q and k are normed as a whole."""

    def norm_heads(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.q_norm is not None and self.k_norm is not None
        return self.q_norm(q), self.k_norm(k)


class Olmo2DecoderLayer(PostNormLayer):
    """Attention and MLP, each with a norm behind it."""

    def __init__(
        self,
        config: Any,
        layer_id: int = 0,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        facts = read_facts(config)
        require(
            facts,
            type(self).__name__,
            hidden_act=("silu",),
            layer_types=("full_attention", "sliding_attention"),
        )
        eps = facts.norm_eps
        self.self_attn = Olmo2Attention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            qkv_bias=facts.attention_bias,
            o_bias=facts.attention_bias,
            sliding_window=facts.window_of_layer(layer_id),
            q_norm=ProjectionRMSNorm(facts.num_attention_heads, facts.head_dim, eps),
            k_norm=ProjectionRMSNorm(facts.num_key_value_heads, facts.head_dim, eps),
        )
        self.mlp = GatedMLP.from_facts(facts, quant_config, add_prefix("mlp", prefix))
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=eps)
        self.post_feedforward_layernorm = RMSNorm(facts.hidden_size, eps=eps)


class Olmo2Model(DecoderModel):
    layer_cls = Olmo2DecoderLayer


class Olmo2ForCausalLM(CausalLM):
    model_cls = Olmo2Model


class Olmo3ForCausalLM(Olmo2ForCausalLM):
    """The same layer; windows and rotary settings come with the config."""


EntryClass = [Olmo2ForCausalLM, Olmo3ForCausalLM]
