"""What `run_proof.py` proves: a small model of every kind, wide enough for tensor cores and deep enough for its mixture of layers."""

from __future__ import annotations

import dataclasses
from typing import Any

TEXT, MEDIA, VECTOR, SCORE = "text", "media", "vector", "score"
VOCAB = 2048
_BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_EXPERTS: dict[str, Any] = {
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 128,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
_LATENT: dict[str, Any] = {"kv_lora_rank": 512, "qk_rope_head_dim": 64}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A config.json. `task` is what is compared: greedy texts with logprobs, the same with pictures, vectors, or scores."""

    name: str
    raw: dict[str, Any]
    task: str = TEXT

    @property
    def architecture(self) -> str:
        return self.raw["architectures"][0]

    @property
    def has_experts(self) -> bool:
        return "num_experts_per_tok" in self.raw

    @property
    def flags(self) -> dict[str, Any]:
        """Flags of every engine that serves it."""
        if self.task == MEDIA:
            return {"enable_multimodal": True}
        return {} if self.task == TEXT else {"is_embedding": True}


def _sizes(hidden: int, inner: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


def _raw(model_type: str, architecture: str, *parts: dict[str, Any], **keys: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"model_type": model_type, "architectures": [architecture], **_BASE}
    for part in parts:
        found |= part
    return found | keys


def _rope(kind: str = "default", theta: float = 10000.0, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


def _qwen3(architecture: str, **keys: Any) -> dict[str, Any]:
    return _raw("qwen3", architecture, _sizes(512, 1024, 4, 8, 2), _rope(), head_dim=64, **keys)


_YARN = _rope(
    "yarn", factor=4.0, mscale=0.7, mscale_all_dim=0.4, original_max_position_embeddings=64
)
_DEEPSEEK_V2 = _raw(
    "deepseek_v2", "DeepseekV2ForCausalLM", _sizes(256, 512, 3, 8, 8), _EXPERTS, _LATENT, _rope(),
    q_lora_rank=None, qk_nope_head_dim=64, v_head_dim=64, topk_method="greedy",
    routed_scaling_factor=1.0,
)  # fmt: skip
_DEEPSEEK_V3 = _raw(
    "deepseek_v3", "DeepseekV3ForCausalLM", _sizes(256, 512, 3, 16, 16), _EXPERTS, _LATENT, _YARN,
    q_lora_rank=128, qk_nope_head_dim=128, v_head_dim=128, n_group=4, topk_group=2,
    routed_scaling_factor=2.5,
)  # fmt: skip
_GEMMA2 = _raw(
    "gemma2", "Gemma2ForCausalLM", _sizes(256, 512, 4, 4, 2), _rope(),
    head_dim=256, sliding_window=64, query_pre_attn_scalar=256, attn_logit_softcapping=2.0,
    final_logit_softcapping=8.0, tie_word_embeddings=True,
)  # fmt: skip
_WINDOWS = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 64}
_GEMMA3 = _raw(
    "gemma3_text", "Gemma3ForCausalLM", _sizes(256, 512, 4, 4, 2), _WINDOWS,
    head_dim=128, query_pre_attn_scalar=128, tie_word_embeddings=True,
)  # fmt: skip
_GPT_OSS = _raw(
    "gpt_oss", "GptOssForCausalLM", _sizes(256, 256, 4, 16, 2), _WINDOWS,
    _rope("yarn", 150000.0, factor=32.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
          original_max_position_embeddings=128),
    head_dim=64, num_local_experts=8, num_experts_per_tok=2, swiglu_limit=7.0,
)  # fmt: skip
_QWEN_VL: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "tie_word_embeddings": False,
    "vision_start_token_id": 400,
    "vision_end_token_id": 401,
    "image_token_id": 402,
    "video_token_id": 403,
    "text_config": {
        **_BASE,
        **_sizes(256, 512, 3, 4, 2),
        **_rope(mrope_section=[8, 12, 12]),
        "model_type": "qwen2_5_vl_text",
    },
    "vision_config": {
        "depth": 3,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_heads": 2,
        "out_hidden_size": 256,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 3,
    },
}
# Those that take longest come first, so that they do not run alone at the end.
KINDS: tuple[Kind, ...] = (
    Kind("vlm-qwen2.5", _QWEN_VL, MEDIA),
    Kind("mla-v3-groups", _DEEPSEEK_V3),
    Kind("mla-v2", _DEEPSEEK_V2),
    Kind("gpt-oss-sinks", _GPT_OSS),
    Kind(
        "moe-shared-groups",
        _raw(
            "glm4_moe", "Glm4MoeForCausalLM", _sizes(256, 512, 3, 8, 2), _EXPERTS,
            _rope(partial_rotary_factor=0.5), head_dim=64, attention_bias=True, use_qk_norm=True,
            n_group=4, topk_group=2, norm_topk_prob=True, routed_scaling_factor=2.5,
            num_nextn_predict_layers=0,
        ),
    ),
    Kind(
        "moe-qwen3",
        _raw(
            "qwen3_moe", "Qwen3MoeForCausalLM", _sizes(256, 512, 3, 8, 2), _rope(), head_dim=64,
            num_experts=16, num_experts_per_tok=4, moe_intermediate_size=128, norm_topk_prob=True,
        ),
    ),
    Kind("window-gemma2", _GEMMA2),
    Kind("window-gemma3", _GEMMA3),
    Kind(
        "gqa-8-1",
        _raw(
            "llama", "LlamaForCausalLM", _sizes(512, 1024, 3, 16, 2),
            _rope("llama3", 500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                  original_max_position_embeddings=256),
            head_dim=128,
        ),
    ),
    Kind("dense-qk-norm", _qwen3("Qwen3ForCausalLM")),
    Kind(
        "hybrid",
        _raw(
            "qwen3_next", "Qwen3NextForCausalLM", _sizes(256, 512, 4, 4, 2), head_dim=64,
            num_experts=16, num_experts_per_tok=4, moe_intermediate_size=128,
            shared_expert_intermediate_size=128,
        ),
    ),
    Kind("embedding", _qwen3("Qwen3ForCausalLM"), VECTOR),
    Kind("reward", _qwen3("Qwen3ForSequenceClassification", num_labels=1), SCORE),
    Kind(
        "encoder",
        _raw("bert", "BertModel", _sizes(256, 512, 3, 4, 4), max_position_embeddings=512),
        VECTOR,
    ),
)  # fmt: skip
