"""Llama 4, the language model; transformers class `Llama4ForCausalLM`.

    h = h + attention(rms_norm(h));  q, k = l2_norm(rope(q)), l2_norm(rope(k)), or, without positions,
        q = q * (1 + c * log(1 + floor((position + 1) / floor_scale)))
    h = h + sum_k expert_k(w_k x) + shared(x),  x = rms_norm(h),  w = sigmoid(top_k(Wg x))

Differs from Llama:
- layers with positions attend within chunks of the context and norm q and k without a weight; rotary pairs are neighbours;
- layers without positions see everything and scale q by its position;
- in the layers of `moe_layers` experts, weighted at their input, beside a shared one; an MLP of another width in the others;
- on disk all experts are one tensor, `[E, D, 2I]` and `[E, I, D]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import read_facts, require
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.moe.topk import TopK
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import CausalLM, DecoderModel
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.common.moe import SparseMoE
from sglang.srt.models.common.norm import add_norm
from sglang.srt.models.common.weights import GATE_UP, QKV, ExpertNames, NamedTensor, WeightMap
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.utils import add_prefix


class Llama4Attention(GQAttention):
    """Attention with norms behind the rotation, or without positions and with queries scaled by theirs.

    `floor_scale`: the positions of one step of the scale; None for no scale.
    """

    def __init__(
        self, *sizes: int, attn_scale: float, floor_scale: int | None, **options: Any
    ) -> None:
        super().__init__(*sizes, **options)
        self.attn_scale = attn_scale
        self.floor_scale = floor_scale

    def norm_and_rotate(
        self, positions: torch.Tensor, q: torch.Tensor, k: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        q, k = self.norm_heads(*self.rotate(positions, q, k))
        if self.floor_scale is not None:
            steps = torch.floor((positions.float() + 1.0) / self.floor_scale)
            scale = 1.0 + self.attn_scale * torch.log1p(steps)  # [T]
            q = (q * scale[:, None]).to(q.dtype)
        return q, k


def route(
    hidden_states: torch.Tensor, gating_output: torch.Tensor, topk: int, renormalize: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and ids [T, k] of the largest logits. Chosen before the sigmoid, which makes large logits equal."""
    logits, ids = gating_output.topk(topk, dim=-1)
    return logits.float().sigmoid(), ids


class Llama4DecoderLayer(nn.Module):
    """Pre-norm attention and MLP or experts around one residual stream."""

    def __init__(
        self,
        config: Any,
        layer_id: int = 0,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        facts = read_facts(config)
        chunks = () if facts.attention_chunk_size is None else ("chunked_attention",)
        layer_types = ("full_attention", *chunks)
        require(facts, type(self).__name__, hidden_act=("silu",), layer_types=layer_types)
        has_rope = bool(config.no_rope_layers[layer_id])  # a list of ones and zeros, one for rope
        norm = None
        if config.use_qk_norm and has_rope:
            norm = RMSNorm(facts.head_dim, eps=facts.norm_eps, has_weight=False)
        is_scaled = config.attn_temperature_tuning and not has_rope
        self.self_attn = Llama4Attention.from_facts(
            facts,
            layer_id,
            quant_config,
            add_prefix("self_attn", prefix),
            use_rope=has_rope,
            rope_is_neox_style=False,
            qkv_bias=facts.attention_bias,
            o_bias=facts.attention_bias,
            q_norm=norm,
            k_norm=norm,
            attn_scale=config.attn_scale,
            floor_scale=config.floor_scale if is_scaled else None,
        )
        self.self_attn.attn.use_irope = facts.layer_types[layer_id] == "chunked_attention"
        prefix = add_prefix("feed_forward", prefix)
        self.feed_forward: nn.Module
        if layer_id in config.moe_layers:
            self.feed_forward = _experts(config, layer_id, quant_config, prefix)
        else:
            self.feed_forward = GatedMLP(
                facts.hidden_size, config.intermediate_size_mlp, "silu", quant_config, prefix
            )
        self.input_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)
        self.post_attention_layernorm = RMSNorm(facts.hidden_size, eps=facts.norm_eps)

    def forward(
        self,
        positions: torch.Tensor,  # [T]
        hidden_states: torch.Tensor,  # [T, D]
        forward_batch: ForwardBatch,
        residual: torch.Tensor | None,  # [T, D]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, residual = add_norm(self.input_layernorm, hidden_states, residual)
        x = self.self_attn(positions, x, forward_batch)
        x, residual = add_norm(self.post_attention_layernorm, x, residual)
        return self.feed_forward(x), residual


class Llama4TextModel(DecoderModel):
    layer_cls = Llama4DecoderLayer


def _experts(
    config: Any, layer_id: int, quant_config: QuantizationConfig | None, prefix: str
) -> SparseMoE:
    """Router, experts that read weighted inputs, and a shared expert."""
    block = SparseMoE(
        config.hidden_size,
        config.intermediate_size,
        config.num_local_experts,
        config.num_experts_per_tok,
        layer_id,
        renormalize=False,
        shared_intermediate_size=config.intermediate_size,
        weighs_inputs=True,
        quant_config=quant_config,
        prefix=prefix,
    )
    block.topk = TopK(config.num_experts_per_tok, layer_id=layer_id, custom_routing_function=route)
    return block


def turn_experts(name: str, tensor: torch.Tensor) -> Iterator[NamedTensor]:
    """Tensors of all experts with rows of outputs, [E, out, in]; other tensors pass."""
    yield name, tensor.transpose(1, 2) if ".experts." in name and tensor.dim() == 3 else tensor


class Llama4ForCausalLM(CausalLM):
    model_cls = Llama4TextModel
    weight_map = WeightMap(
        stacked=(*QKV, *GATE_UP),
        rename=WeightsMapper(
            orig_to_new_substr={
                ".feed_forward.router.": ".feed_forward.gate.",
                ".shared_expert.": ".shared_experts.",
            }
        ),
        convert=turn_experts,
        experts=ExpertNames(),
    )


EntryClass = Llama4ForCausalLM
