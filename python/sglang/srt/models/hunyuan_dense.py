"""Hunyuan dense; transformers class `HunYuanDenseV1ForCausalLM`.

    h = h + attention(rms_norm(h));  q, k = rms_norm_per_head(rope(q)), rms_norm_per_head(rope(k))
    h = h + down(silu(gate(x)) * up(x)),  x = rms_norm(h)

Differs from Llama:
- q and k are normed head by head, after the rotation;
- the rotary base is stretched once by `alpha` of the config.
"""

from __future__ import annotations

from typing import Any

import torch

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormLayer
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.common.weights import GATE_UP, QKV, WeightMap
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.utils import add_prefix


class HunYuanDenseV1Attention(GQAttention):
    """Attention whose norms come after the rotation."""

    def norm_and_rotate(
        self, positions: torch.Tensor, q: torch.Tensor, k: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.norm_heads(*self.rotate(positions, q, k))


class HunYuanDenseV1DecoderLayer(PreNormLayer):
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
        self.self_attn = HunYuanDenseV1Attention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            qkv_bias=facts.attention_bias,
            o_bias=facts.attention_bias,
            q_norm=RMSNorm(facts.head_dim, eps=facts.norm_eps),
            k_norm=RMSNorm(facts.head_dim, eps=facts.norm_eps),
        )
        self.mlp = GatedMLP.from_facts(facts, quant_config, add_prefix("mlp", prefix))
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)


class HunYuanDenseV1Model(DecoderModel):
    layer_cls = HunYuanDenseV1DecoderLayer


class HunYuanDenseV1ForCausalLM(CausalLM):
    model_cls = HunYuanDenseV1Model
    weight_map = WeightMap(
        stacked=(*QKV, *GATE_UP),
        rename=WeightsMapper({".query_layernorm.": ".q_norm.", ".key_layernorm.": ".k_norm."}),
    )


EntryClass = HunYuanDenseV1ForCausalLM
