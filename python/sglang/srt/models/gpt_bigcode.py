"""StarCoder 1 and SantaCoder; transformers class `GPTBigCodeForCausalLM` (arXiv 2305.06161).

    h = h + attention(layer_norm(h));  h0 = embed(token) + embed(position)
    h = h + down(gelu(up(layer_norm(h))))

Differs from GPT-2:
- all query heads share one head of k and v (`multi_query`);
- matrices are not transposed; without `multi_query`, q, k and v are fused head by head.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import read_facts
from sglang.srt.layers.layernorm import LayerNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM
from sglang.srt.models.common.mlp import PlainMLP
from sglang.srt.models.common.norm import add_norm
from sglang.srt.models.common.weights import WeightMap, unfuse_heads
from sglang.srt.models.gpt2 import GPT2_MASKS, GPT2_NAMES, GPT2Model
from sglang.srt.utils import add_prefix


class GPTBigCodeBlock(nn.Module):
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
            use_rope=False,
            scaling=facts.head_dim**-0.5 if config.scale_attn_weights else 1.0,
            qkv_bias=True,
            o_bias=True,
        )
        self.mlp = PlainMLP(
            facts.hidden_size,
            facts.intermediate_size or 4 * facts.hidden_size,
            facts.hidden_act,
            quant_config,
            add_prefix("mlp", prefix),
            bias=True,
        )
        self.ln_1 = LayerNorm(facts.hidden_size, eps=facts.norm_eps)
        self.ln_2 = LayerNorm(facts.hidden_size, eps=facts.norm_eps)

    def forward(
        self,
        positions: torch.Tensor,  # [T]
        hidden_states: torch.Tensor,  # [T, D]
        forward_batch: ForwardBatch,
        residual: torch.Tensor | None,  # [T, D]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, residual = add_norm(self.ln_1, hidden_states, residual)
        x = self.self_attn(positions, x, forward_batch)
        x, residual = add_norm(self.ln_2, x, residual)
        return self.mlp(x), residual


class GPTBigCodeModel(GPT2Model):
    layer_cls = GPTBigCodeBlock


class GPTBigCodeForCausalLM(CausalLM):
    model_cls = GPTBigCodeModel

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__(config, quant_config, prefix)
        facts = read_facts(config)
        convert = None
        if facts.num_key_value_heads == facts.num_attention_heads:
            convert = partial(unfuse_heads, facts.num_attention_heads)
        self.weight_map = WeightMap(rename=GPT2_NAMES, skip=GPT2_MASKS, convert=convert)


EntryClass = GPTBigCodeForCausalLM
