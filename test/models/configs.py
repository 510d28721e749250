"""Tiny configurations, one per feature that a model file must get right.

`CASES` maps a name to a transformers config class, the architecture, and the keys that differ from `BASE`. Sizes are chosen so
that a feature left out shows: windows are shorter than the prompts, rotary settings change within a few dozen positions.
"""

from __future__ import annotations

from typing import Any

from models.case import BASE, Case
from models.configs_dense import DENSE_CASES
from models.configs_mla import MLA_CASES
from models.configs_moe import MOE_CASES
from models.configs_moe_b import MOE_B_CASES
from models.configs_moe_more import MORE_MOE_CASES
from models.configs_remote import REMOTE_CASES

__all__ = ["BASE", "CASES", "Case"]


def rope(kind: str, **params: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **params}}


_LONGROPE_FACTORS = {
    "short_factor": [1.0 + 0.05 * i for i in range(8)],
    "long_factor": [1.5 + 0.5 * i for i in range(8)],
}


def _llama(**keys: Any) -> Case:
    return Case("LlamaConfig", "LlamaForCausalLM", keys)


CASES: dict[str, Case] = {
    "llama": _llama(),
    "llama-tied": _llama(tie_word_embeddings=True),
    "llama-bias": _llama(attention_bias=True, mlp_bias=True),
    "llama-head-dim": _llama(head_dim=24, num_hidden_layers=3),
    "llama-mha": _llama(num_key_value_heads=4),
    "llama-theta": _llama(rope_parameters={"rope_type": "default", "rope_theta": 100.0}),
    "llama-linear": _llama(**rope("linear", factor=3.0)),
    "llama-dynamic": Case(
        "LlamaConfig",
        "LlamaForCausalLM",
        {"max_position_embeddings": 16, **rope("dynamic", factor=2.0)},
        prompt_lens=(32, 32),
    ),
    "llama-llama3": _llama(
        **rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        )
    ),
    "llama-yarn": _llama(**rope("yarn", factor=4.0, original_max_position_embeddings=32)),
    "llama-yarn-mscale": _llama(
        **rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=32,
            mscale=0.7,
            mscale_all_dim=0.4,
            beta_fast=16,
            beta_slow=2,
        )
    ),
    "llama-longrope-short": Case(
        "LlamaConfig",
        "LlamaForCausalLM",
        rope("longrope", factor=4.0, original_max_position_embeddings=64, **_LONGROPE_FACTORS),
        context_length=64,
    ),
    "llama-longrope-long": _llama(
        **rope("longrope", factor=32.0, original_max_position_embeddings=8, **_LONGROPE_FACTORS)
    ),
    "qwen2": Case("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen2-tied": Case("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen2-window": Case(
        "Qwen2Config",
        "Qwen2ForCausalLM",
        {
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
            "num_hidden_layers": 3,
        },
    ),
    "qwen3": Case("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 24}),
    "qwen3-tied": Case(
        "Qwen3Config",
        "Qwen3ForCausalLM",
        {"head_dim": 16, "tie_word_embeddings": True, "attention_bias": True},
    ),
    "mistral": Case("MistralConfig", "MistralForCausalLM", {"sliding_window": None}),
    "mistral-window": Case(
        "MistralConfig", "MistralForCausalLM", {"sliding_window": 8, "head_dim": 24}
    ),
    "olmo2-on-transformers": Case("Olmo2Config", "Olmo2ForCausalLM", is_fallback=True),
    "granite-on-transformers": Case(
        "GraniteConfig",
        "GraniteForCausalLM",
        {
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.11,
            "logits_scaling": 4.0,
            "tie_word_embeddings": True,
        },
        is_fallback=True,
    ),
    "phi-on-transformers": Case(
        "PhiConfig",
        "PhiForCausalLM",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            }
        },
        is_fallback=True,
    ),
    "gemma2-on-transformers": Case(
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {
            "head_dim": 16,
            "sliding_window": 8,
            "query_pre_attn_scalar": 12,
            "attn_logit_softcapping": 1.0,
            "final_logit_softcapping": 1.5,
            "tie_word_embeddings": True,
        },
        is_fallback=True,
    ),
    "olmoe-on-transformers": Case(
        "OlmoeConfig",
        "OlmoeForCausalLM",
        {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48},
        is_fallback=True,
    ),
    **DENSE_CASES,
    **REMOTE_CASES,
    **MOE_CASES,
    **MLA_CASES,
    **MORE_MOE_CASES,
    **MOE_B_CASES,
}
