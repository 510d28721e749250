"""Blocks of the DeepSeek families: experts routed as V2 and as V3 do, and the attention and MLP that other families' files import.

V2: s = softmax(Wg x), of the best groups of experts, weights as they are
V3: s = sigmoid(Wg x), groups by their two best, a correction bias for the choice, weights over their sum
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sglang.srt.configs.hf_config import to_mapping
from sglang.srt.configs.mla import MLAFacts
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.layers.rotary_embedding import yarn_get_mscale
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.mla import MLAttention
from sglang.srt.models.common.mlp import CommunicatedMLP
from sglang.srt.models.common.moe import SparseMoE
from sglang.srt.utils.errors import ConfigError


class DeepseekV2MoE(SparseMoE):
    """Routing by softmax scores."""

    def __init__(
        self,
        config: Any,
        layer_id: int,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        raw = to_mapping(config)
        _require_key(raw, "topk_method", "greedy", "group_limited_greedy")
        _require_key(raw, "scoring_func", "softmax", None)
        _require_key(raw, "norm_topk_prob", False, None)
        is_grouped = config.topk_method == "group_limited_greedy"
        super().__init__(
            config.hidden_size,
            config.moe_intermediate_size,
            config.n_routed_experts,
            config.num_experts_per_tok,
            layer_id,
            renormalize=False,
            num_groups=config.n_group if is_grouped else 1,
            top_groups=config.topk_group if is_grouped else 1,
            routed_scaling_factor=config.routed_scaling_factor,
            shared_intermediate_size=shared_width(config),
            float32_router=True,
            quant_config=quant_config,
            prefix=prefix,
        )


class DeepseekV3MoE(SparseMoE):
    """Routing by corrected sigmoid scores, without an auxiliary loss ("noaux_tc")."""

    def __init__(
        self,
        config: Any,
        layer_id: int,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        raw = to_mapping(config)
        _require_key(raw, "topk_method", "noaux_tc", None)
        _require_key(raw, "scoring_func", "sigmoid", None)
        super().__init__(
            config.hidden_size,
            config.moe_intermediate_size,
            config.n_routed_experts,
            config.num_experts_per_tok,
            layer_id,
            renormalize=config.norm_topk_prob,
            scoring_func="sigmoid",
            num_groups=config.n_group,
            top_groups=config.topk_group,
            has_correction_bias=True,
            routed_scaling_factor=config.routed_scaling_factor,
            shared_intermediate_size=shared_width(config),
            float32_router=True,
            quant_config=quant_config,
            prefix=prefix,
        )


class DeepseekV2MLP(CommunicatedMLP):
    """The MLP of dense layers and of shared experts."""

    def forward(
        self,
        x: torch.Tensor,  # [T, D]
        forward_batch: ForwardBatch | None = None,
        should_allreduce_fusion: bool = False,
        use_reduce_scatter: bool = False,
        gemm_output_zero_allocator: Any = None,
    ) -> torch.Tensor:
        """The allocator is accepted and not needed."""
        return self.multiply(x, skip_all_reduce=should_allreduce_fusion or use_reduce_scatter)


class DeepseekV2AttentionMLA(MLAttention):
    """Latent attention with its sizes as arguments. `skip_rope`: no rotation; `alt_stream` is not needed.

    `rope_scaling` of any kind but "default" is yarn, and scales the scores too where it has `mscale_all_dim`.
    """

    def __init__(
        self,
        config: Any,
        hidden_size: int,
        num_heads: int,
        qk_nope_head_dim: int,
        qk_rope_head_dim: int,
        v_head_dim: int,
        q_lora_rank: int | None,
        kv_lora_rank: int,
        rope_theta: float = 10000,
        rope_scaling: dict[str, Any] | None = None,
        max_position_embeddings: int = 8192,
        quant_config: QuantizationConfig | None = None,
        reduce_results: bool = True,
        layer_id: int = 0,
        prefix: str = "",
        alt_stream: Any = None,
        skip_rope: bool = False,
    ) -> None:
        yarn = _as_yarn(rope_scaling)
        raw = to_mapping(config)
        sizes = MLAFacts(kv_lora_rank, q_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim)
        super().__init__(
            hidden_size,
            num_heads,
            sizes,
            layer_id,
            rope_theta=rope_theta,
            rope_scaling=yarn,
            max_position_embeddings=max_position_embeddings,
            rope_is_neox_style=not raw.get("rope_interleave", True),
            scaling=sizes.qk_head_dim**-0.5 * _score_factor(yarn),
            bias=bool(raw.get("attention_bias")),
            quant_config=quant_config,
            prefix=prefix,
        )
        self.o_proj.reduce_results = reduce_results
        if skip_rope:
            self.add_module("rotary_emb", _NoRotation())

    def forward(
        self,
        positions: torch.Tensor,  # [T]
        hidden_states: torch.Tensor,  # [T, D]
        forward_batch: ForwardBatch,
        zero_allocator: Any = None,
        llama_4_scaling: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The allocator is accepted and not needed. Raises ConfigError for `llama_4_scaling`."""
        if llama_4_scaling is not None:
            raise ConfigError("llama_4_scaling is not implemented for latent attention")
        return super().forward(positions, hidden_states, forward_batch)


class _NoRotation(nn.Module):
    def forward(
        self, positions: torch.Tensor, q: torch.Tensor, k: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return q, k


def shared_width(config: Any) -> int | None:
    """Inner width of the shared experts together, None where there are none."""
    count = config.n_shared_experts
    return config.moe_intermediate_size * count if count else None


def _require_key(raw: Mapping[str, Any], key: str, *allowed: Any) -> None:
    """Refuse another value of a config key; None allows that it is absent."""
    if raw.get(key) not in allowed:
        shown = [value for value in allowed if value is not None]
        raise ConfigError(
            f"config.json has {key}={raw.get(key)!r}, which model_type {raw.get('model_type')!r} does not "
            f"implement; implemented: {shown}"
        )


def _as_yarn(rope_scaling: dict[str, Any] | None) -> dict[str, Any] | None:
    kind = None if rope_scaling is None else rope_scaling.get("rope_type", rope_scaling.get("type"))
    if not rope_scaling or kind == "default":
        return None
    return {**rope_scaling, "rope_type": "deepseek_yarn"}


def _score_factor(yarn: dict[str, Any] | None) -> float:
    if yarn is None or not yarn.get("mscale_all_dim"):
        return 1.0
    return yarn_get_mscale(yarn["factor"], yarn["mscale_all_dim"]) ** 2
