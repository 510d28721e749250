"""Command R7B, Command A and Aya Expanse 2; transformers class `Cohere2ForCausalLM`.

    x = layer_norm(h);  h = h + attention(x) + down(silu(gate(x)) * up(x))
    logits = logit_scale * head(layer_norm(h))

Differs from Llama:
- the parallel block, norms, rotation and logit scale of Command-R, without norms on q and k;
- three windowed layers with rotary positions to each full layer without any positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import LayerNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.cohere import CohereForCausalLM, CohereModel
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.common.norm import add_norm
from sglang.srt.utils import add_prefix


class Cohere2DecoderLayer(nn.Module):
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
            use_rope=window >= 0,
            rope_is_neox_style=False,
            qkv_bias=facts.attention_bias,
            o_bias=facts.attention_bias,
            sliding_window=window,
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


class Cohere2Model(CohereModel):
    layer_cls = Cohere2DecoderLayer


class Cohere2ForCausalLM(CohereForCausalLM):
    model_cls = Cohere2Model


EntryClass = Cohere2ForCausalLM
