"""Tiny models that take media, one per feature that a model file must get right: changes to the stored configurations."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from sglang.verify.tiny import tiny_config


@dataclass(frozen=True)
class MediaCase:
    """`architecture` as `sglang.verify.tiny` knows it; `text` and `vision` change keys of the two parts of its config.json, `outer` those
    outside."""

    architecture: str
    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)
    outer: dict[str, Any] = field(default_factory=dict)

    def config(self) -> dict[str, Any]:
        """The config.json."""
        raw = copy.deepcopy(tiny_config(self.architecture))
        text = "text_config" if "text_config" in raw else "llm_config"
        for part, changes in ((text, self.text), ("vision_config", self.vision)):
            if changes:
                raw[part].update(changes)
        return {**raw, **self.outer}


_QWEN2_VL = "Qwen2VLForConditionalGeneration"
_QWEN2_5_VL = "Qwen2_5_VLForConditionalGeneration"
_LLAVA = "LlavaForConditionalGeneration"
_LLAVA_NEXT = "LlavaNextForConditionalGeneration"
_LLAVA_ONEVISION = "LlavaOnevisionForConditionalGeneration"
_GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
}
_SIGLIP = {"model_type": "siglip_vision_model", "vision_use_head": True}

_INTERNVL = "InternVLForConditionalGeneration"
_INTERNVL_CHAT = "InternVLChatModel"
_INTERNLM2 = {"model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"], "bias": False}
_QWEN2_AUDIO = "Qwen2AudioForConditionalGeneration"
_MLLAMA = "MllamaForConditionalGeneration"

VLM_CASES: dict[str, MediaCase] = {
    "internvl": MediaCase(_INTERNVL),
    "internvl-qk-norm": MediaCase(
        _INTERNVL,
        text={"model_type": "llama"},
        vision={
            "use_qk_norm": True,
            "norm_type": "rms_norm",
            "attention_bias": False,
            "use_mean_pooling": False,
        },
    ),
    "internvl-qwen3": MediaCase(
        _INTERNVL, text={"model_type": "qwen3", "head_dim": 16}, outer={"tie_word_embeddings": True}
    ),
    "internvl-chat": MediaCase(_INTERNVL_CHAT),
    "internvl-chat-internlm2": MediaCase(
        _INTERNVL_CHAT,
        text=_INTERNLM2,
        vision={"qk_normalization": True, "norm_type": "rms_norm", "qkv_bias": False},
    ),
    "mllama": MediaCase(_MLLAMA),
    # Squares of nine patches, other shapes of pictures, and the first and last layers attending to them.
    "mllama-three-tiles": MediaCase(
        _MLLAMA,
        text={"cross_attention_layers": [0, 4]},
        vision={
            "image_size": 42,
            "max_num_tiles": 3,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1], [1, 3], [3, 1], [1, 1], [3, 1]],
            "intermediate_layers_indices": [2, 0, 1],
            "vision_output_dim": 128,
        },
    ),
    "qwen2-audio": MediaCase(_QWEN2_AUDIO),
    "qwen2-vl": MediaCase(_QWEN2_VL),
    "qwen2-vl-head-dim": MediaCase(_QWEN2_VL, vision={"embed_dim": 48, "num_heads": 3}),
    "qwen2-5-vl": MediaCase(_QWEN2_5_VL),
    "qwen2-5-vl-windows-only": MediaCase(
        _QWEN2_5_VL, vision={"fullatt_block_indexes": [], "window_size": 112}
    ),
    "gemma3-images": MediaCase("Gemma3ForConditionalGeneration"),
    "gemma3-images-untied": MediaCase(
        "Gemma3ForConditionalGeneration",
        text={"rope_parameters": _GEMMA3_ROPE},
        vision={"image_size": 84},
        outer={"mm_tokens_per_image": 9, "tie_word_embeddings": False},
    ),
    "llava": MediaCase(_LLAVA),
    "llava-class-row": MediaCase(
        _LLAVA,
        outer={"vision_feature_select_strategy": "full", "vision_feature_layer": [-3, 0, -1]},
    ),
    "llava-siglip": MediaCase(
        _LLAVA,
        text={"model_type": "qwen2"},
        vision=_SIGLIP,
        outer={"vision_feature_select_strategy": "full", "multimodal_projector_bias": False},
    ),
    "llava-next": MediaCase(_LLAVA_NEXT),
    "llava-next-siglip": MediaCase(
        _LLAVA_NEXT,
        text={"sliding_window": 8},
        vision=_SIGLIP,
        outer={"vision_feature_select_strategy": "full"},
    ),
    "llava-llama": MediaCase("LlavaLlamaForCausalLM"),
    "llava-mistral": MediaCase("LlavaMistralForCausalLM"),
    "llava-qwen": MediaCase("LlavaQwenForCausalLM"),
    "llava-onevision": MediaCase(_LLAVA_ONEVISION),
    "llava-onevision-scaled": MediaCase(
        _LLAVA_ONEVISION,
        text={"tie_word_embeddings": True},
        vision={"image_size": 42},
        outer={
            "vision_aspect_ratio": "anyres_max_2",
            "image_grid_pinpoints": [[42, 84], [84, 42], [84, 84], [42, 126]],
        },
    ),
}
