"""StarCoder2; transformers class `Starcoder2ForCausalLM` (arXiv 2402.19173).

    h = h + attention(layer_norm(h))
    h = h + down(gelu(up(layer_norm(h))))

Differs from Llama:
- layer norms with a bias, a plain MLP with GELU in its tanh form;
- `use_bias` is on every matrix of the layer;
- every layer may attend to a sliding window.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from sglang.srt.configs.hf_config import read_facts
from sglang.srt.layers.layernorm import LayerNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormLayer
from sglang.srt.models.common.mlp import PlainMLP
from sglang.srt.models.common.weights import QKV, WeightMap
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.utils import add_prefix


class Starcoder2DecoderLayer(PreNormLayer):
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
        self.self_attn = GQAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            qkv_bias=config.use_bias,
            o_bias=config.use_bias,
            sliding_window=facts.window_of_layer(layer_id),
        )
        self.mlp = PlainMLP(
            facts.hidden_size,
            facts.intermediate_size,
            facts.hidden_act,
            quant_config,
            add_prefix("mlp", prefix),
            bias=config.use_bias,
        )
        self.input_layernorm = LayerNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = LayerNorm(facts.hidden_size, eps=facts.norm_eps)


class Starcoder2Model(DecoderModel):
    layer_cls = Starcoder2DecoderLayer

    def make_norm(self, hidden_size: int, eps: float) -> nn.Module:
        return LayerNorm(hidden_size, eps=eps)


class Starcoder2ForCausalLM(CausalLM):
    model_cls = Starcoder2Model
    weight_map = WeightMap(
        stacked=QKV,
        rename=WeightsMapper({".mlp.c_fc.": ".mlp.up_proj.", ".mlp.c_proj.": ".mlp.down_proj."}),
    )


EntryClass = Starcoder2ForCausalLM
