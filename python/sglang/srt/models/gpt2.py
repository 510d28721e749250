"""GPT-2; transformers class `GPT2LMHeadModel`.

    h = h + attention(layer_norm(h));  h0 = embed(token) + embed(position)
    h = h + down(gelu(up(layer_norm(h))))

Differs from Llama:
- learned absolute positions in place of rotary ones;
- layer norms and biases everywhere, a plain MLP with GELU in its tanh form;
- the checkpoint holds matrices transposed, `[in, out]`, with q, k and v fused; the head is the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import read_facts
from sglang.srt.layers.layernorm import LayerNorm
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.layers.utils import PPMissingLayer
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.mlp import PlainMLP
from sglang.srt.models.common.norm import add_norm
from sglang.srt.models.common.weights import NamedTensor, WeightMap
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.utils import add_prefix


class GPT2Block(nn.Module):
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
        scaling = facts.head_dim**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            scaling /= layer_id + 1
        self.self_attn = GQAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            use_rope=False,
            scaling=scaling,
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


class GPT2Model(DecoderModel):
    layer_cls: type[nn.Module] = GPT2Block

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__(config, quant_config, prefix)
        facts = read_facts(config)
        self.embed_positions: nn.Module = (
            VocabParallelEmbedding(facts.max_position_embeddings, facts.hidden_size)
            if self.pp_group.is_first_rank
            else PPMissingLayer()
        )

    def add_positions(self, hidden_states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.embed_positions(positions)

    def make_norm(self, hidden_size: int, eps: float) -> nn.Module:
        return LayerNorm(hidden_size, eps=eps)


GPT2_NAMES = WeightsMapper(
    orig_to_new_substr={
        ".attn.c_attn.": ".self_attn.qkv_proj.",
        ".attn.c_proj.": ".self_attn.o_proj.",
        ".mlp.c_fc.": ".mlp.up_proj.",
        ".mlp.c_proj.": ".mlp.down_proj.",
    },
    # The first GPT-2 checkpoints have no "transformer." before their names.
    orig_to_new_prefix={
        f"{prefix}{old}.": f"model.{new}."
        for prefix in ("transformer.", "")
        for old, new in (
            ("h", "layers"),
            ("wte", "embed_tokens"),
            ("wpe", "embed_positions"),
            ("ln_f", "norm"),
        )
    },
)
# The causal mask, which old checkpoints store.
GPT2_MASKS = (r"\.attn\.(bias|masked_bias)$",)


def _transpose(name: str, tensor: torch.Tensor) -> Iterator[NamedTensor]:
    is_matrix = tensor.dim() == 2 and ".layers." in name
    yield name, tensor.t() if is_matrix else tensor


class GPT2LMHeadModel(CausalLM):
    model_cls: type[nn.Module] = GPT2Model
    weight_map = WeightMap(rename=GPT2_NAMES, skip=GPT2_MASKS, convert=_transpose)


EntryClass = GPT2LMHeadModel
