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


# Keys of `BASE` that these families' config.json does not have.
_OWN_SIZES = ("intermediate_size", "num_key_value_heads")


def _gpt(config_class: str, architecture: str, **keys: Any) -> Case:
    return Case(config_class, architecture, keys, without=_OWN_SIZES)


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
        _longrope(
            original=256,
            partial_rotary_factor=0.75,
            max_position_embeddings=512,
            tie_word_embeddings=True,
        ),
        context_length=256,
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
            "logits_scaling": 0.5,
            "tie_word_embeddings": True,
        },
    ),
    "granite-bias": Case(
        "GraniteConfig",
        "GraniteForCausalLM",
        {"attention_multiplier": 0.5, "attention_bias": True, "mlp_bias": True},
    ),
    "cohere": Case(
        "CohereConfig", "CohereForCausalLM", {"logit_scale": 2.0, "tie_word_embeddings": True}
    ),
    "cohere-qk-norm": Case(
        "CohereConfig",
        "CohereForCausalLM",
        {
            "logit_scale": 2.0,
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
            "logit_scale": 2.0,
            "tie_word_embeddings": True,
        },
    ),
    "stablelm": Case(
        "StableLmConfig",
        "StableLmForCausalLM",
        {"use_qkv_bias": True, "rope_parameters": _rope(partial_rotary_factor=0.25)},
    ),
    "stablelm-parallel": Case(
        "StableLmConfig",
        "StableLmForCausalLM",
        {
            "use_parallel_residual": True,
            "qk_layernorm": True,
            "rope_parameters": _rope(partial_rotary_factor=0.5),
        },
    ),
    "starcoder2": Case(
        "Starcoder2Config",
        "Starcoder2ForCausalLM",
        {"sliding_window": 8, "tie_word_embeddings": True},
    ),
    "starcoder2-no-bias": Case(
        "Starcoder2Config", "Starcoder2ForCausalLM", {"use_bias": False, "hidden_act": "gelu"}
    ),
    "smollm3": Case(
        "SmolLM3Config",
        "SmolLM3ForCausalLM",
        {"num_hidden_layers": 4, "no_rope_layer_interval": 2, "tie_word_embeddings": True},
    ),
    "smollm3-window": Case(
        "SmolLM3Config",
        "SmolLM3ForCausalLM",
        {
            "num_hidden_layers": 3,
            "no_rope_layers": [1, 0, 1],
            "use_sliding_window": True,
            "sliding_window": 8,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "exaone4": Case(
        "Exaone4Config",
        "Exaone4ForCausalLM",
        {"num_hidden_layers": 4, "sliding_window": 8, "sliding_window_pattern": 4},
    ),
    "exaone4-full": Case(
        "Exaone4Config",
        "Exaone4ForCausalLM",
        {
            "sliding_window": None,
            "layer_types": [FULL, FULL],
            "tie_word_embeddings": True,
        },
    ),
    "apertus": Case(
        "ApertusConfig",
        "ApertusForCausalLM",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "seed-oss": Case(
        "SeedOssConfig",
        "SeedOssForCausalLM",
        {"head_dim": 24, "attention_bias": True, "attention_out_bias": False},
    ),
    "seed-oss-out-bias": Case(
        "SeedOssConfig",
        "SeedOssForCausalLM",
        {
            "head_dim": 16,
            "attention_bias": False,
            "attention_out_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "ernie4_5": Case(
        "Ernie4_5Config", "Ernie4_5ForCausalLM", {"head_dim": 24, "tie_word_embeddings": True}
    ),
    "ernie4_5-bias": Case(
        "Ernie4_5Config", "Ernie4_5ForCausalLM", {"head_dim": 16, "use_bias": True}
    ),
    "arcee": Case(
        "ArceeConfig",
        "ArceeForCausalLM",
        {
            "hidden_act": "relu2",
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "hunyuan-dense": Case(
        "HunYuanDenseV1Config",
        "HunYuanDenseV1ForCausalLM",
        {
            "head_dim": 24,
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 10000.0,
                "alpha": 50.0,
                "factor": 1.0,
            },
        },
    ),
    "nemotron": Case(
        "NemotronConfig",
        "NemotronForCausalLM",
        {"hidden_act": "relu2", "rope_parameters": _rope(partial_rotary_factor=0.5)},
    ),
    "ministral3": Case(
        "Ministral3Config",
        "Ministral3ForCausalLM",
        {
            "head_dim": 24,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 16,
                "llama_4_scaling_beta": 0.5,
            },
        },
    ),
    "gpt2": _gpt("GPT2Config", "GPT2LMHeadModel", tie_word_embeddings=True),
    "gpt2-scaled": _gpt(
        "GPT2Config",
        "GPT2LMHeadModel",
        n_inner=96,
        num_hidden_layers=3,
        scale_attn_by_inverse_layer_idx=True,
    ),
    "gpt-bigcode": _gpt("GPTBigCodeConfig", "GPTBigCodeForCausalLM", tie_word_embeddings=True),
    "gpt-bigcode-heads": Case(
        "GPTBigCodeConfig",
        "GPTBigCodeForCausalLM",
        {"multi_query": False, "n_head": 4},
        # transformers derives num_key_value_heads from n_head under this name only.
        without=(*_OWN_SIZES, "num_attention_heads"),
    ),
    "gptj": _gpt("GPTJConfig", "GPTJForCausalLM", rotary_dim=8),
    "opt": _gpt("OPTConfig", "OPTForCausalLM", ffn_dim=96, tie_word_embeddings=True),
    "opt-no-bias": _gpt(
        "OPTConfig",
        "OPTForCausalLM",
        ffn_dim=96,
        enable_bias=False,
        layer_norm_elementwise_affine=False,
    ),
    "persimmon": Case(
        "PersimmonConfig",
        "PersimmonForCausalLM",
        {
            "hidden_act": "relu2",
            "rope_parameters": _rope(partial_rotary_factor=0.5),
        },
        without=("num_key_value_heads",),
    ),
}
