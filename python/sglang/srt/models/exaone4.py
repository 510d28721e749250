"""EXAONE 4.0; transformers class `Exaone4ForCausalLM` (arXiv 2507.11407).

    h = h + rms_norm(attention(h));  q, k = rope(rms_norm_per_head(q)), rope(rms_norm_per_head(k))
    h = h + rms_norm(down(silu(gate(h)) * up(h)))

Differs from Llama:
- the branches read the residual itself; their outputs are normed;
- q and k are normed head by head;
- 32B: three windowed layers to each full one, and full layers have no positions;
- 1.2B: no windows, positions everywhere.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PostNormLayer
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.utils import add_prefix


class Exaone4DecoderLayer(PostNormLayer):
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
        window = facts.window_of_layer(layer_id)
        self.self_attn = GQAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            use_rope=facts.sliding_window is None or window >= 0,
            sliding_window=window,
            q_norm=RMSNorm(facts.head_dim, eps=facts.norm_eps),
            k_norm=RMSNorm(facts.head_dim, eps=facts.norm_eps),
        )
        self.mlp = GatedMLP.from_facts(facts, quant_config, add_prefix("mlp", prefix))
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_feedforward_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)


class Exaone4Model(DecoderModel):
    layer_cls = Exaone4DecoderLayer


class Exaone4ForCausalLM(CausalLM):
    model_cls = Exaone4Model


EntryClass = Exaone4ForCausalLM
