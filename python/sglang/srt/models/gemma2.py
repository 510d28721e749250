"""Gemma 2; transformers class `Gemma2ForCausalLM` (arXiv 2408.00118).

    h = h + norm(attention(norm(h)));  scores = cap * tanh(q k^T * scale / cap)
    h = h + norm(down(gelu(gate(x)) * up(x))),  x = norm(h)

Differs from Llama:
- norms, embeddings and activation as in Gemma 1;
- the output of attention and of the MLP is normed too, before it joins the residual;
- every other layer sees a sliding window;
- soft caps on attention scores and on logits;
- scores are scaled by `query_pre_attn_scalar`, not by the head dim.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import GemmaRMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM
from sglang.srt.models.common.decoder_layer import SandwichLayer
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.gemma import GemmaModel
from sglang.srt.utils import add_prefix


class Gemma2DecoderLayer(SandwichLayer):
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
        )
        self.mlp = GatedMLP.from_facts(facts, quant_config, add_prefix("mlp", prefix))
        self.input_layernorm = GemmaRMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = GemmaRMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.pre_feedforward_layernorm = GemmaRMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_feedforward_layernorm = GemmaRMSNorm(facts.hidden_size, eps=facts.norm_eps)


class Gemma2Model(GemmaModel):
    layer_cls = Gemma2DecoderLayer


class Gemma2ForCausalLM(CausalLM):
    model_cls = Gemma2Model


EntryClass = Gemma2ForCausalLM
