"""InternLM 2 and 2.5; published as code, architecture `InternLM2ForCausalLM` (arXiv 2403.17297).

    h = h + attention(rms_norm(h))
    h = h + w2(silu(w1(x)) * w3(x)),  x = rms_norm(h)

Differs from Llama in the checkpoint: `wqkv` holds, one kv head after the other, its query heads, its key and its value; names are its
own. `bias` is on the matrices of attention.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormLayer
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.common.weights import GATE_UP, WeightMap, unfuse_groups
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.utils import add_prefix

INTERNLM2_NAMES = WeightsMapper(
    orig_to_new_prefix={"model.tok_embeddings.": "model.embed_tokens.", "output.": "lm_head."},
    orig_to_new_substr={
        ".attention.wqkv.": ".self_attn.qkv_proj.",
        ".attention.wo.": ".self_attn.o_proj.",
        ".feed_forward.w1.": ".mlp.gate_proj.",
        ".feed_forward.w3.": ".mlp.up_proj.",
        ".feed_forward.w2.": ".mlp.down_proj.",
        ".attention_norm.": ".input_layernorm.",
        ".ffn_norm.": ".post_attention_layernorm.",
    },
)


class InternLM2DecoderLayer(PreNormLayer):
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
            facts.hidden_act,
            quant_config,
            add_prefix("mlp", prefix),
        )
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)


class InternLM2Model(DecoderModel):
    layer_cls = InternLM2DecoderLayer


class InternLM2ForCausalLM(CausalLM):
    model_cls = InternLM2Model
    packed_modules_mapping = {"qkv_proj": ["wqkv"], "gate_up_proj": ["w1", "w3"]}

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__(config, quant_config, prefix)
        facts = read_facts(config)
        heads = facts.num_key_value_heads, facts.num_attention_heads
        convert = partial(unfuse_groups, *heads)
        self.weight_map = WeightMap(stacked=GATE_UP, rename=INTERNLM2_NAMES, convert=convert)


EntryClass = InternLM2ForCausalLM
