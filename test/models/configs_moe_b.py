"""Tiny configurations of more families with experts; `configs.CASES` holds them too."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from models.case import Case

SLIDING, FULL = "sliding_attention", "full_attention"

# Older releases of transformers compute with the published constants, whatever the config says.
HAS_SWIGLU_LIMIT = tuple(map(int, version("transformers").split(".")[:2])) >= (5, 23)
_SWIGLU: dict[str, Any] = (
    {"swiglu_limit": 0.7, "swiglu_alpha": 1.3} if HAS_SWIGLU_LIMIT else {"swiglu_limit": 7.0}
)

_LLAMA4: dict[str, Any] = {
    "head_dim": 16,
    "intermediate_size": 48,
    "intermediate_size_mlp": 80,
    "num_local_experts": 8,
    "attention_chunk_size": 8,
    "floor_scale": 8,
    "attn_scale": 0.5,
}


def _half_rope() -> dict[str, Any]:
    """Rotation of the first half of a head."""
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    return {"rope_parameters": {**plain, "partial_rotary_factor": 0.5}}


MOE_B_CASES: dict[str, Case] = {
    "gpt-oss": Case(
        "GptOssConfig",
        "GptOssForCausalLM",
        {
            "head_dim": 24,
            "intermediate_size": 48,
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "sliding_window": 8,
            **_SWIGLU,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "gpt-oss-published-limit": Case(
        "GptOssConfig",
        "GptOssForCausalLM",
        {
            "head_dim": 16,
            "intermediate_size": 32,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "layer_types": [FULL, SLIDING],
            "attention_bias": False,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "glm4-moe": Case(
        "Glm4MoeConfig",
        "Glm4MoeForCausalLM",
        {
            "num_hidden_layers": 3,
            "head_dim": 24,
            "use_qk_norm": True,
            "moe_intermediate_size": 48,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "n_shared_experts": 2,
            "routed_scaling_factor": 2.5,
            "first_k_dense_replace": 1,
            **_half_rope(),
        },
    ),
    "glm4-moe-groups": Case(
        "Glm4MoeConfig",
        "Glm4MoeForCausalLM",
        {
            "head_dim": 16,
            "attention_bias": True,
            "moe_intermediate_size": 32,
            "n_routed_experts": 12,
            "num_experts_per_tok": 3,
            "n_group": 4,
            "topk_group": 2,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.5,
            "first_k_dense_replace": 0,
            "tie_word_embeddings": True,
            **_half_rope(),
        },
    ),
    "minimax-m2": Case(
        "MiniMaxM2Config",
        "MiniMaxM2ForCausalLM",
        {
            "head_dim": 24,
            "intermediate_size": 48,
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            **_half_rope(),
        },
    ),
    "llama4": Case(
        "Llama4TextConfig",
        "Llama4ForCausalLM",
        {
            **_LLAMA4,
            "num_hidden_layers": 4,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
            "no_rope_layer_interval": 4,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "llama4-no-norm": Case(
        "Llama4TextConfig",
        "Llama4ForCausalLM",
        {
            **_LLAMA4,
            "num_experts_per_tok": 2,
            "interleave_moe_layer_step": 1,
            "no_rope_layer_interval": 2,
            "use_qk_norm": False,
            "attn_temperature_tuning": False,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "hunyuan-moe": Case(
        "HunYuanMoEV1Config",
        "HunYuanMoEV1ForCausalLM",
        {
            "head_dim": 24,
            "intermediate_size": 48,
            "num_experts": 8,
            "moe_topk": 3,
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 10000.0,
                "alpha": 50.0,
                "factor": 1.0,
            },
        },
    ),
    "hunyuan-moe-lists": Case(
        "HunYuanMoEV1Config",
        "HunYuanMoEV1ForCausalLM",
        {
            "head_dim": 16,
            "intermediate_size": 32,
            "num_experts": 4,
            "moe_topk": [1, 2],
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "exaone-moe": Case(
        "ExaoneMoeConfig",
        "ExaoneMoeForCausalLM",
        {
            "num_hidden_layers": 4,
            "head_dim": 24,
            "sliding_window": 8,
            "sliding_window_pattern": 4,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 48,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "num_shared_experts": 2,
        },
    ),
    "exaone-moe-groups": Case(
        "ExaoneMoeConfig",
        "ExaoneMoeForCausalLM",
        {
            "head_dim": 16,
            "sliding_window": 8,
            "layer_types": [FULL, SLIDING],
            "mlp_layer_types": ["sparse", "dense"],
            "moe_intermediate_size": 32,
            "num_experts": 12,
            "num_experts_per_tok": 3,
            "n_group": 4,
            "topk_group": 2,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.5,
            "tie_word_embeddings": True,
        },
    ),
    "afmoe": Case(
        "AfmoeConfig",
        "AfmoeForCausalLM",
        {
            "num_hidden_layers": 4,
            "head_dim": 24,
            "num_dense_layers": 1,
            "moe_intermediate_size": 48,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "num_shared_experts": 2,
            "sliding_window": 8,
            "global_attn_every_n_layers": 4,
            "mup_enabled": True,
            "route_scale": 2.0,
        },
    ),
    "afmoe-bias": Case(
        "AfmoeConfig",
        "AfmoeForCausalLM",
        {
            "head_dim": 16,
            "num_dense_layers": 0,
            "moe_intermediate_size": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_shared_experts": 1,
            "sliding_window": 8,
            "layer_types": [FULL, SLIDING],
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
}
