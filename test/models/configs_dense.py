"""Tiny configurations of the dense families; `configs.CASES` holds them too.

Constants are chosen so that leaving a feature out shows: caps near one, windows of 8 tokens, multipliers far from one.
"""

from __future__ import annotations

from typing import Any

from models.case import Case

SLIDING, FULL = "sliding_attention", "full_attention"


def _rope(**params: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, **params}


def _longrope(original: int, partial_rotary_factor: float = 1.0, **keys: Any) -> dict[str, Any]:
    """LongRoPE made for `original` positions; head dim 16."""
    count = int(16 * partial_rotary_factor) // 2
    settings = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": partial_rotary_factor,
        "short_factor": [1.0 + 0.05 * i for i in range(count)],
        "long_factor": [1.5 + 0.5 * i for i in range(count)],
        "original_max_position_embeddings": original,
    }
    return {"original_max_position_embeddings": original, "rope_parameters": settings, **keys}


DENSE_CASES: dict[str, Case] = {
    "gemma": Case("GemmaConfig", "GemmaForCausalLM", {"head_dim": 24, "tie_word_embeddings": True}),
    "gemma2": Case(
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {
            "head_dim": 24,
            "num_hidden_layers": 4,
            "sliding_window": 8,
            "query_pre_attn_scalar": 12,
            "attn_logit_softcapping": 1.0,
            "final_logit_softcapping": 1.5,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3": Case(
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            "head_dim": 24,
            "num_hidden_layers": 3,
            "sliding_window": 8,
            "query_pre_attn_scalar": 12,
            "layer_types": [SLIDING, SLIDING, FULL],
            "rope_parameters": {
                SLIDING: _rope(),
                FULL: {"rope_type": "linear", "rope_theta": 100000.0, "factor": 8.0},
            },
            "tie_word_embeddings": True,
        },
    ),
    "phi": Case(
        "PhiConfig", "PhiForCausalLM", {"rope_parameters": _rope(partial_rotary_factor=0.5)}
    ),
    "phi-qk-norm": Case(
        "PhiConfig",
        "PhiForCausalLM",
        {"qk_layernorm": True, "rope_parameters": _rope(partial_rotary_factor=0.5)},
    ),
    "phi3": Case("Phi3Config", "Phi3ForCausalLM", {"sliding_window": 8}),
    "phi3-longrope-short": Case(
        "Phi3Config",
        "Phi3ForCausalLM",
        _longrope(original=64, partial_rotary_factor=0.75, tie_word_embeddings=True),
        context_length=64,
    ),
    "phi3-longrope-long": Case("Phi3Config", "Phi3ForCausalLM", _longrope(original=8)),
    "glm": Case(
        "GlmConfig",
        "GlmForCausalLM",
        {
            "head_dim": 16,
            "attention_bias": True,
            "rope_parameters": _rope(partial_rotary_factor=0.5),
        },
    ),
    "glm4": Case(
        "Glm4Config",
        "Glm4ForCausalLM",
        {
            "head_dim": 24,
            "attention_bias": True,
            "rope_parameters": _rope(partial_rotary_factor=0.5),
        },
    ),
    "olmo": Case("OlmoConfig", "OlmoForCausalLM", {"clip_qkv": 0.5}),
    "olmo-unclipped": Case("OlmoConfig", "OlmoForCausalLM", {"tie_word_embeddings": True}),
    "olmo2": Case("Olmo2Config", "Olmo2ForCausalLM"),
    "olmo3": Case(
        "Olmo3Config",
        "Olmo3ForCausalLM",
        {
            "num_hidden_layers": 4,
            "sliding_window": 8,
            "layer_types": [SLIDING, SLIDING, SLIDING, FULL],
            "rope_parameters": {
                SLIDING: _rope(),
                FULL: {
                    "rope_type": "yarn",
                    "rope_theta": 10000.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 32,
                },
            },
        },
    ),
    "granite": Case(
        "GraniteConfig",
        "GraniteForCausalLM",
        {
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.11,
            "logits_scaling": 4.0,
            "tie_word_embeddings": True,
        },
    ),
    "granite-bias": Case(
        "GraniteConfig",
        "GraniteForCausalLM",
        {"attention_multiplier": 0.5, "attention_bias": True, "mlp_bias": True},
    ),
    "cohere": Case(
        "CohereConfig", "CohereForCausalLM", {"logit_scale": 0.25, "tie_word_embeddings": True}
    ),
    "cohere-qk-norm": Case(
        "CohereConfig",
        "CohereForCausalLM",
        {
            "logit_scale": 0.25,
            "use_qk_norm": True,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "cohere2": Case(
        "Cohere2Config",
        "Cohere2ForCausalLM",
        {
            "num_hidden_layers": 4,
            "sliding_window": 8,
            "logit_scale": 0.25,
            "tie_word_embeddings": True,
        },
    ),
}
