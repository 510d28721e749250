"""Tiny configurations of the dense families; `configs.CASES` holds them too.

Constants are chosen so that leaving a feature out shows: caps near one, windows of 8 tokens, multipliers far from one.
"""

from __future__ import annotations

from typing import Any

from models.case import Case

SLIDING, FULL = "sliding_attention", "full_attention"


def _rope(**params: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, **params}


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
}
