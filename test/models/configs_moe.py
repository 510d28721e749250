"""Tiny configurations of the families with experts; `configs.CASES` holds them too.

Three choices of eight experts: many experts get few tokens or none, and weights that are not renormalised are far from one.
"""

from __future__ import annotations

from models.case import Case

MOE_CASES: dict[str, Case] = {
    "mixtral": Case(
        "MixtralConfig", "MixtralForCausalLM", {"num_local_experts": 8, "num_experts_per_tok": 3}
    ),
    "mixtral-window": Case(
        "MixtralConfig",
        "MixtralForCausalLM",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 24,
            "sliding_window": 8,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3-moe": Case(
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {
            "head_dim": 24,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "norm_topk_prob": True,
        },
    ),
    "qwen3-moe-mixed": Case(
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {
            "head_dim": 16,
            "num_hidden_layers": 5,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": False,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 8,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2-moe": Case(
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 80,
            "norm_topk_prob": False,
        },
    ),
    "qwen2-moe-mixed": Case(
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {
            "num_hidden_layers": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 48,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
            "qkv_bias": False,
            "use_sliding_window": True,
            "sliding_window": 8,
            "layer_types": [
                "full_attention",
                "sliding_attention",
                "sliding_attention",
                "full_attention",
            ],
        },
    ),
    "olmoe": Case(
        "OlmoeConfig",
        "OlmoeForCausalLM",
        {
            "intermediate_size": 48,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "norm_topk_prob": False,
            "clip_qkv": 0.5,
        },
    ),
    "olmoe-unclipped": Case(
        "OlmoeConfig",
        "OlmoeForCausalLM",
        {
            "intermediate_size": 48,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
}
