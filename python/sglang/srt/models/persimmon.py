"""Persimmon 8B; transformers class `PersimmonForCausalLM`.

    h = h + attention(layer_norm(h));  q, k = rope(layer_norm_per_head(q)), rope(layer_norm_per_head(k))
    h = h + down(relu(up(layer_norm(h)))^2)

Differs from Llama:
- layer norms and biases everywhere (not on the head), a plain MLP with the square of ReLU;
- with `qk_layernorm` q and k are normed head by head;
- rotary positions on half of each head;
- q, k and v are fused head by head in the checkpoint.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from sglang.srt.configs.hf_config import read_facts
from sglang.srt.layers.layernorm import LayerNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormLayer
from sglang.srt.models.common.mlp import PlainMLP
from sglang.srt.models.common.weights import WeightMap, unfuse_heads
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.utils import add_prefix


class PersimmonDecoderLayer(PreNormLayer):
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
        norms: dict[str, Any] = {}
        if config.qk_layernorm:
            norms["q_norm"] = LayerNorm(facts.head_dim, eps=facts.norm_eps)
            norms["k_norm"] = LayerNorm(facts.head_dim, eps=facts.norm_eps)
        self.self_attn = GQAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            qkv_bias=True,
            o_bias=True,
            **norms,
        )
        self.mlp = PlainMLP(
            facts.hidden_size,
            facts.intermediate_size,
            facts.hidden_act,
            quant_config,
            add_prefix("mlp", prefix),
            bias=True,
        )
        self.input_layernorm = LayerNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = LayerNorm(facts.hidden_size, eps=facts.norm_eps)


class PersimmonModel(DecoderModel):
    layer_cls = PersimmonDecoderLayer

    def make_norm(self, hidden_size: int, eps: float) -> nn.Module:
        return LayerNorm(hidden_size, eps=eps)


class PersimmonForCausalLM(CausalLM):
    model_cls = PersimmonModel

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__(config, quant_config, prefix)
        num_heads = read_facts(config).num_attention_heads
        self.weight_map = WeightMap(rename=_NAMES, convert=partial(unfuse_heads, num_heads))


_NAMES = WeightsMapper(
    orig_to_new_substr={
        ".self_attn.query_key_value.": ".self_attn.qkv_proj.",
        ".self_attn.dense.": ".self_attn.o_proj.",
        ".q_layernorm.": ".q_norm.",
        ".k_layernorm.": ".k_norm.",
        ".mlp.dense_h_to_4h.": ".mlp.up_proj.",
        ".mlp.dense_4h_to_h.": ".mlp.down_proj.",
    },
    orig_to_new_prefix={"model.final_layernorm.": "model.norm."},
)

EntryClass = PersimmonForCausalLM
