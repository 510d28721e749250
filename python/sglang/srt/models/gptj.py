"""GPT-J; transformers class `GPTJForCausalLM`.

    x = layer_norm(h);  h = h + attention(x) + mlp(x)
    mlp(x) = down(gelu(up(x)))

Differs from Llama:
- attention and MLP read the same norm and their outputs are added together;
- layer norms with a bias, biases on the MLP and the head, none on attention;
- a plain MLP with GELU in its tanh form;
- rotary positions turn neighbouring dimensions, and only the first `rotary_dim` of each head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import read_facts
from sglang.srt.layers.layernorm import LayerNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.mlp import PlainMLP
from sglang.srt.models.common.norm import add_norm
from sglang.srt.models.common.weights import QKV, WeightMap
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.utils import add_prefix


class GPTJBlock(nn.Module):
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
        # The config gives the rotated dimensions and no other rotary setting.
        rotary_dim = config.rotary_dim or facts.head_dim
        self.self_attn = GQAttention(
            facts.hidden_size,
            facts.num_attention_heads,
            facts.num_key_value_heads,
            facts.head_dim,
            layer_id,
            rope_is_neox_style=False,
            partial_rotary_factor=rotary_dim / facts.head_dim,
            max_position_embeddings=facts.max_position_embeddings,
            quant_config=quant_config,
            prefix=add_prefix("self_attn", prefix),
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

    def forward(
        self,
        positions: torch.Tensor,  # [T]
        hidden_states: torch.Tensor,  # [T, D]
        forward_batch: ForwardBatch,
        residual: torch.Tensor | None,  # [T, D]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, residual = add_norm(self.ln_1, hidden_states, residual)
        return self.self_attn(positions, x, forward_batch) + self.mlp(x), residual


class GPTJModel(DecoderModel):
    layer_cls = GPTJBlock

    def make_norm(self, hidden_size: int, eps: float) -> nn.Module:
        return LayerNorm(hidden_size, eps=eps)


class GPTJForCausalLM(CausalLM):
    model_cls = GPTJModel
    head_bias = True
    weight_map = WeightMap(
        stacked=QKV,
        skip=(r"\.attn\.(bias|masked_bias)$",),
        rename=WeightsMapper(
            orig_to_new_substr={
                ".attn.out_proj.": ".self_attn.o_proj.",
                ".attn.q_proj.": ".self_attn.q_proj.",
                ".attn.k_proj.": ".self_attn.k_proj.",
                ".attn.v_proj.": ".self_attn.v_proj.",
                ".mlp.fc_in.": ".mlp.up_proj.",
                ".mlp.fc_out.": ".mlp.down_proj.",
            },
            orig_to_new_prefix={
                "transformer.h.": "model.layers.",
                "transformer.wte.": "model.embed_tokens.",
                "transformer.ln_f.": "model.norm.",
            },
        ),
    )


EntryClass = GPTJForCausalLM
