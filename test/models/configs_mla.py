"""Tiny configurations of the families with latent attention; `configs.CASES` holds them too.

Groups are such that the best experts of all are not the best of the best groups; factors and scales are far from one.
"""

from __future__ import annotations

from typing import Any

from models.case import Case

_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
_EXPERTS: dict[str, Any] = {
    "num_hidden_layers": 3,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
}


def _yarn(**params: Any) -> dict[str, Any]:
    settings = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "mscale": 0.7,
        "mscale_all_dim": 0.4,
        "original_max_position_embeddings": 64,
    }
    return {"rope_parameters": {**settings, **params}}


def _v2(**keys: Any) -> Case:
    keys = {"first_k_dense_replace": 1, **_LATENT, **_EXPERTS, **keys}
    return Case("DeepseekV2Config", "DeepseekV2ForCausalLM", keys)


def _v3(**keys: Any) -> Case:
    keys = {"first_k_dense_replace": 1, **_LATENT, **_EXPERTS, **keys}
    return Case("DeepseekV3Config", "DeepseekV3ForCausalLM", keys)


def _minicpm3(original: int, context_length: int | None = None, **keys: Any) -> Case:
    """LongRoPE made for `original` positions."""
    rotary = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.5, 2.0, 2.5, 3.0],
        "original_max_position_embeddings": original,
    }
    scales = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 32}
    keys = {**_LATENT, **scales, "rope_parameters": rotary, **keys}
    return Case("MiniCPM3Config", "MiniCPM3ForCausalLM", keys, context_length=context_length)


MLA_CASES: dict[str, Case] = {
    "deepseek-v2-lite": _v2(
        q_lora_rank=None,
        n_shared_experts=2,
        topk_method="greedy",
        routed_scaling_factor=0.7,
        **_yarn(mscale=0.7, mscale_all_dim=0.7),
    ),
    "deepseek-v2": _v2(
        topk_method="group_limited_greedy",
        n_group=4,
        topk_group=2,
        routed_scaling_factor=4.0,
        **_yarn(),
    ),
    "deepseek-v2-bias": _v2(
        topk_method="greedy", first_k_dense_replace=2, attention_bias=True, tie_word_embeddings=True
    ),
    "deepseek-v3": _v3(n_group=4, topk_group=2, routed_scaling_factor=2.5, **_yarn()),
    "deepseek-v3-halves": _v3(
        n_group=2,
        topk_group=1,
        first_k_dense_replace=0,
        norm_topk_prob=False,
        rope_interleave=False,
        attention_bias=True,
        tie_word_embeddings=True,
        q_lora_rank=None,
    ),
    "kimi-k2": _v3(
        n_group=1,
        topk_group=1,
        routed_scaling_factor=2.827,
        **_yarn(
            rope_theta=50000.0,
            factor=32.0,
            beta_fast=1.0,
            beta_slow=1.0,
            mscale=1.0,
            mscale_all_dim=1.0,
        ),
    ),
    "glm4-moe-lite": Case(
        "Glm4MoeLiteConfig",
        "Glm4MoeLiteForCausalLM",
        {
            **_LATENT,
            **_EXPERTS,
            "mlp_layer_types": ["sparse", "dense", "sparse"],
            "routed_scaling_factor": 1.8,
        },
    ),
    "glm4-moe-lite-groups": Case(
        "Glm4MoeLiteConfig",
        "Glm4MoeLiteForCausalLM",
        {
            **_LATENT,
            **_EXPERTS,
            "n_routed_experts": 16,
            "n_group": 4,
            "topk_group": 2,
            "rope_interleave": False,
            "attention_bias": True,
            "norm_topk_prob": False,
            "tie_word_embeddings": True,
        },
    ),
    "minicpm3-short": _minicpm3(
        256, context_length=256, max_position_embeddings=512, tie_word_embeddings=True
    ),
    "minicpm3-long": _minicpm3(8, attention_bias=True),
    "minicpm3-q-whole": _minicpm3(8, q_lora_rank=None, v_head_dim=None),
}
