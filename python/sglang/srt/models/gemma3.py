"""Gemma 3, text; transformers class `Gemma3ForCausalLM` (arXiv 2503.19786).

    h = h + norm(attention(norm(h)));  q, k = rope(norm_per_head(q)), rope(norm_per_head(k))
    h = h + norm(down(gelu(gate(x)) * up(x))),  x = norm(h)

Differs from Llama:
- norms, embeddings and activation as in Gemma 1, four norms in a layer as in Gemma 2;
- q and k are normed head by head (with `1 + w`), which took the place of Gemma 2's soft caps;
- five windowed layers to each full one, and rotary settings that differ between the two types.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import Gemma3RMSNorm, GemmaRMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM
from sglang.srt.models.common.decoder_layer import SandwichLayer
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.gemma import GemmaModel
from sglang.srt.utils import add_prefix
from sglang.srt.utils.errors import ConfigError


class Gemma3DecoderLayer(SandwichLayer):
    """Attention and MLP between two norms each."""

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
            hidden_act=("gelu_pytorch_tanh",),
            layer_types=("full_attention", "sliding_attention"),
        )
        if config.use_bidirectional_attention:
            raise ConfigError(
                "Gemma3ForCausalLM does not implement use_bidirectional_attention=True; "
                "try --model-impl transformers"
            )
        self.self_attn = GQAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            qkv_bias=facts.attention_bias,
            o_bias=facts.attention_bias,
            scaling=config.query_pre_attn_scalar**-0.5,
            logit_cap=config.attn_logit_softcapping or 0.0,
            sliding_window=facts.window_of_layer(layer_id),
            q_norm=Gemma3RMSNorm(facts.head_dim, eps=facts.norm_eps),
            k_norm=Gemma3RMSNorm(facts.head_dim, eps=facts.norm_eps),
        )
        self.mlp = GatedMLP.from_facts(facts, quant_config, add_prefix("mlp", prefix))
        self.input_layernorm = GemmaRMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = GemmaRMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.pre_feedforward_layernorm = GemmaRMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_feedforward_layernorm = GemmaRMSNorm(facts.hidden_size, eps=facts.norm_eps)


class Gemma3TextModel(GemmaModel):
    layer_cls = Gemma3DecoderLayer


class Gemma3ForCausalLM(CausalLM):
    model_cls = Gemma3TextModel


EntryClass = Gemma3ForCausalLM
