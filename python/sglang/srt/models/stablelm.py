"""StableLM 3B and StableLM 2; transformers class `StableLmForCausalLM` (arXiv 2402.17834).

    h = h + attention(layer_norm(h))
    h = h + down(silu(gate(x)) * up(x)),  x = layer_norm(h)

Differs from Llama:
- layer norms with a bias; q, k and v may have a bias, the output projection never;
- rotary positions on a quarter of each head;
- with `qk_layernorm` every head of q and k has a layer norm of its own;
- with `use_parallel_residual` (12B) attention and MLP read the same norm, their outputs are added.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import LayerNorm
from sglang.srt.layers.parameter import expect_shards, mark_filled
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.layers.weight_placement import copy_into
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.common.norm import add_norm
from sglang.srt.models.common.qk_norm import PerHeadLayerNorm
from sglang.srt.models.common.weights import GATE_UP, QKV, WeightMap
from sglang.srt.utils import add_prefix


class StableLmHeadNorm(PerHeadLayerNorm):
    """The norms of all heads; the checkpoint holds one tensor `[d]` per head."""

    def __init__(self, num_heads: int, head_dim: int, eps: float) -> None:
        super().__init__(num_heads, head_dim, eps)
        self.first_head = self.part * self.num_heads
        heads = range(self.first_head, self.first_head + self.num_heads)
        expect_shards([self.weight], heads)

    def weight_loader(
        self, param: nn.Parameter, loaded_weight: torch.Tensor, head: int | None = None
    ) -> None:
        if head is None:
            raise ValueError("q_norm and k_norm are loaded head by head")
        row = head - self.first_head
        if row in range(self.num_heads):
            copy_into(param.data[row], loaded_weight, f"norm of head {head}")
            mark_filled(param, head)


class StableLmAttention(GQAttention):
    """Attention whose norms take all heads at once, because each has its own weight."""

    def norm_heads(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.q_norm is None or self.k_norm is None:
            return q, k
        return self.q_norm(q), self.k_norm(k)


class StableLmDecoderLayer(nn.Module):
    """Attention and MLP one after the other, or side by side."""

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
        norms: dict[str, Any] = {}
        if config.qk_layernorm:
            sizes = facts.head_dim, facts.norm_eps
            norms["q_norm"] = StableLmHeadNorm(facts.num_attention_heads, *sizes)
            norms["k_norm"] = StableLmHeadNorm(facts.num_key_value_heads, *sizes)
        self.self_attn = StableLmAttention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            qkv_bias=bool(facts.qkv_bias),
            **norms,
        )
        self.mlp = GatedMLP.from_facts(facts, quant_config, add_prefix("mlp", prefix))
        self.input_layernorm = LayerNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm: LayerNorm | None = None
        if not config.use_parallel_residual:
            self.post_attention_layernorm = LayerNorm(facts.hidden_size, eps=facts.norm_eps)

    def forward(
        self,
        positions: torch.Tensor,  # [T]
        hidden_states: torch.Tensor,  # [T, D]
        forward_batch: ForwardBatch,
        residual: torch.Tensor | None,  # [T, D]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, residual = add_norm(self.input_layernorm, hidden_states, residual)
        attended = self.self_attn(positions, x, forward_batch)
        if self.post_attention_layernorm is None:
            return attended + self.mlp(x), residual
        x, residual = add_norm(self.post_attention_layernorm, attended, residual)
        return self.mlp(x), residual


class StableLmModel(DecoderModel):
    layer_cls = StableLmDecoderLayer

    def make_norm(self, hidden_size: int, eps: float) -> nn.Module:
        return LayerNorm(hidden_size, eps=eps)


class StableLmForCausalLM(CausalLM):
    model_cls = StableLmModel

    def __init__(
        self, config: Any, quant_config: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__(config, quant_config, prefix)
        heads = range(read_facts(config).num_attention_heads)
        norms = [(f".{x}_norm", f".{x}_layernorm.norms.{i}", i) for x in "qk" for i in heads]
        self.weight_map = WeightMap(stacked=(*QKV, *GATE_UP, *norms))


EntryClass = StableLmForCausalLM
