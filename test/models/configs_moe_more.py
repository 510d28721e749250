"""Tiny configurations of more families with experts; `configs.CASES` holds them too."""

from __future__ import annotations

from typing import Any

from models.case import BASE, Case

_LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0}

_GROK: dict[str, Any] = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "embedding_multiplier_scale": 8.0,
    "output_multiplier_scale": 0.6,
    "attn_output_multiplier": 0.4,
    # Published: 30 for both, which a tiny model does not reach.
    "max_attn_value": 1.0,
    "router_logit_softcapping": 0.7,
}
_BAILING: dict[str, Any] = {
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "rope_theta": 600000.0,
}


def _published(model_type: str, architecture: str, **keys: Any) -> Case:
    """A family that transformers does not have; `keys` in the spelling of its published files."""
    sizes = {key: value for key, value in BASE.items() if key != "tie_word_embeddings"}
    return Case("", architecture, {"model_type": model_type, **sizes, "rms_norm_eps": 1e-5, **keys})


def _phimoe(**keys: Any) -> dict[str, Any]:
    # Scores near each other: SparseMixer's weights are then between one half and one.
    return {
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "router_jitter_noise": 0.2,
        **keys,
    }


MORE_MOE_CASES: dict[str, Case] = {
    "granitemoe": Case(
        "GraniteMoeConfig",
        "GraniteMoeForCausalLM",
        {
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "embedding_multiplier": 6.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.11,
            "logits_scaling": 4.0,
            "attention_bias": True,
        },
    ),
    "granitemoe-tied": Case(
        "GraniteMoeConfig",
        "GraniteMoeForCausalLM",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "attention_multiplier": 0.2,
            "tie_word_embeddings": True,
        },
    ),
    "granitemoe-shared": Case(
        "GraniteMoeSharedConfig",
        "GraniteMoeSharedForCausalLM",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 80,
            "embedding_multiplier": 6.0,
            "residual_multiplier": 0.3,
            "attention_multiplier": 0.11,
            "logits_scaling": 4.0,
        },
    ),
    "phimoe": Case(
        "PhimoeConfig",
        "PhimoeForCausalLM",
        _phimoe(attention_bias=True, lm_head_bias=True, head_dim=24),
    ),
    "phimoe-window": Case("PhimoeConfig", "PhimoeForCausalLM", _phimoe(sliding_window=8)),
    "phimoe-longrope-short": Case(
        "PhimoeConfig",
        "PhimoeForCausalLM",
        _phimoe(
            max_position_embeddings=1024,
            rope_parameters={
                **_LONGROPE,
                "short_factor": [1.0 + 0.05 * i for i in range(8)],
                "long_factor": [1.5 + 0.5 * i for i in range(8)],
                "short_mscale": 1.3,
                "long_mscale": 0.8,
                "original_max_position_embeddings": 256,
            },
        ),
        context_length=256,
    ),
    # transformers takes the short factors whatever the length, and the long magnitude: equal factors.
    "phimoe-longrope-long": Case(
        "PhimoeConfig",
        "PhimoeForCausalLM",
        _phimoe(
            rope_parameters={
                **_LONGROPE,
                "short_factor": [1.5 + 0.5 * i for i in range(8)],
                "long_factor": [1.5 + 0.5 * i for i in range(8)],
                "short_mscale": 1.3,
                "long_mscale": 0.8,
                "original_max_position_embeddings": 8,
            },
        ),
    ),
    "dbrx": Case(
        "DbrxConfig",
        "DbrxForCausalLM",
        {
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 256,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.5, "rope_theta": 500000.0},
            "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 8, "moe_top_k": 3},
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        },
        without=tuple(
            key for key in BASE if key not in ("vocab_size", "tie_word_embeddings", "pad_token_id")
        ),
    ),
    "dbrx-unnormed": Case(
        "DbrxConfig",
        "DbrxForCausalLM",
        {
            "d_model": 64,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 256,
            "attn_config": {"kv_n_heads": 4, "clip_qkv": 1.0, "rope_theta": 10000.0},
            "ffn_config": {
                "ffn_hidden_size": 80,
                "moe_num_experts": 4,
                "moe_top_k": 2,
                "moe_normalize_expert_weights": None,
            },
        },
        without=tuple(
            key for key in BASE if key not in ("vocab_size", "tie_word_embeddings", "pad_token_id")
        ),
    ),
    "ernie4_5-moe": Case(
        "Ernie4_5_MoeConfig",
        "Ernie4_5_MoeForCausalLM",
        {
            "num_hidden_layers": 4,
            "moe_intermediate_size": 48,
            "moe_num_experts": 8,
            "moe_k": 3,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 2,
            # Above the sum of most tokens' weights.
            "moe_norm_min": 0.6,
            "use_bias": True,
        },
    ),
    "ernie4_5-moe-interval": Case(
        "Ernie4_5_MoeConfig",
        "Ernie4_5_MoeForCausalLM",
        {
            "num_hidden_layers": 4,
            "moe_intermediate_size": 32,
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_num_shared_experts": 0,
            "moe_layer_start_index": 0,
            "moe_layer_interval": 2,
            "tie_word_embeddings": True,
        },
    ),
    "deepseek": _published(
        "deepseek",
        "DeepseekForCausalLM",
        num_hidden_layers=4,
        num_key_value_heads=4,
        n_routed_experts=8,
        n_shared_experts=2,
        num_experts_per_tok=3,
        moe_intermediate_size=48,
        first_k_dense_replace=1,
        norm_topk_prob=False,
        rope_theta=10000.0,
    ),
    "deepseek-renormalised": _published(
        "deepseek",
        "DeepseekForCausalLM",
        num_hidden_layers=3,
        n_routed_experts=4,
        n_shared_experts=None,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        first_k_dense_replace=0,
        moe_layer_freq=2,
        norm_topk_prob=True,
        routed_scaling_factor=1.7,
        attention_bias=True,
        tie_word_embeddings=True,
    ),
    "xverse-moe": _published(
        "xverse",
        "XverseMoeForCausalLM",
        num_key_value_heads=4,
        intermediate_size=48,
        num_experts=8,
        moe_top_k=3,
        num_shared_experts=2,
        rope_theta=500000.0,
    ),
    "xverse-moe-unnormed": _published(
        "xverse",
        "XverseMoeForCausalLM",
        intermediate_size=80,
        num_experts=4,
        moe_top_k=2,
        norm_topk_prob=False,
        tie_word_embeddings=True,
    ),
    "grok-1": _published("grok-1", "Grok1ModelForCausalLM", **_GROK),
    # As published: the experts are counted under Mixtral's key too, and what the config leaves out is the model's own.
    "grok-1-mixtral-names": _published(
        "mixtral",
        "Grok1ForCausalLM",
        num_local_experts=4,
        num_experts_per_tok=3,
        embedding_multiplier_scale=8.0,
        output_multiplier_scale=0.6,
        max_attn_value=1.0,
        tie_word_embeddings=False,
        final_logit_softcapping=0.5,
    ),
    "bailing-moe": _published(
        "bailing_moe",
        "BailingMoeForCausalLM",
        **_BAILING,
        head_dim=24,
        num_shared_experts=2,
        norm_topk_prob=True,
        use_qkv_bias=True,
        use_bias=True,
        norm_head=True,
    ),
    "bailing-moe-tied": _published(
        "bailing_moe",
        "BailingMoEForCausalLM",
        **_BAILING,
        first_k_dense_replace=1,
        norm_topk_prob=False,
        tie_word_embeddings=True,
    ),
    "bailing-moe-v2": _published(
        "bailing_moe",
        "BailingMoeV2ForCausalLM",
        **{**_BAILING, "num_hidden_layers": 3, "num_experts": 16},
        head_dim=24,
        num_shared_experts=1,
        first_k_dense_replace=1,
        norm_topk_prob=True,
        use_qk_norm=True,
        partial_rotary_factor=0.5,
        score_function="sigmoid",
        moe_router_enable_expert_bias=True,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
    ),
}
