"""Qwen 1; published as code, architecture `QWenLMHeadModel` (arXiv 2309.16609).

    h = h + attention(rms_norm(h));  q, k, v = Wqkv x + b
    h = h + c_proj(silu(w2(x)) * w1(x)),  x = rms_norm(h)

Differs from Llama:
- q, k and v have a bias and are fused in the checkpoint, whose names are GPT-2's;
- each MLP input has half of `intermediate_size`;
- with `use_logn_attn`, queries beyond `seq_length` grow with the logarithm of their position;
- with `use_dynamic_ntk` the angles of a whole sequence change beyond `seq_length`; it is served up to there.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from sglang.srt.configs.hf_config import read_facts
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.common.weights import GATE_UP, WeightMap
from sglang.srt.models.llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.utils import add_prefix

_NAMES = WeightsMapper(
    orig_to_new_prefix={
        "transformer.h.": "model.layers.",
        "transformer.wte.": "model.embed_tokens.",
        "transformer.ln_f.": "model.norm.",
    },
    orig_to_new_substr={
        ".attn.c_attn.": ".self_attn.qkv_proj.",
        ".attn.c_proj.": ".self_attn.o_proj.",
        ".mlp.w1.": ".mlp.up_proj.",
        ".mlp.w2.": ".mlp.gate_proj.",
        ".mlp.c_proj.": ".mlp.down_proj.",
        ".ln_1.": ".input_layernorm.",
        ".ln_2.": ".post_attention_layernorm.",
    },
)


class QWenAttention(GQAttention):
    """`logn_from`: positions above it (counted from one) scale their queries by `log(position) / log(logn_from)`."""

    logn_from: int | None = None

    def norm_and_rotate(
        self, positions: torch.Tensor, q: torch.Tensor, k: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        q, k = self.rotate(positions, q, k)
        if self.logn_from is not None:
            growth = (positions + 1).float().log() / math.log(self.logn_from)  # [T]
            q = q * growth.clamp(min=1.0).to(q.dtype)[:, None]
        return q, k


class QWenBlock(LlamaDecoderLayer):
    """Llama's layer with Qwen's biases and widths."""

    self_attn: Any
    mlp: Any

    def __init__(
        self,
        config: Any,
        layer_id: int = 0,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__(config, layer_id, quant_config, prefix)
        facts, has_bias = read_facts(config), not config.no_bias
        self.self_attn = QWenAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            qkv_bias=True,
            o_bias=has_bias,
        )
        if config.use_logn_attn:
            self.self_attn.logn_from = config.seq_length
        self.mlp = GatedMLP(
            facts.hidden_size,
            (facts.intermediate_size or 0) // 2,
            facts.hidden_act,
            quant_config,
            add_prefix("mlp", prefix),
            bias=has_bias,
        )


class QWenModel(LlamaModel):
    layer_cls = QWenBlock


class QWenLMHeadModel(LlamaForCausalLM):
    model_cls = QWenModel
    weight_map = WeightMap(stacked=GATE_UP, rename=_NAMES)
    packed_modules_mapping = {"qkv_proj": ["c_attn"], "gate_up_proj": ["w2", "w1"]}


EntryClass = QWenLMHeadModel
