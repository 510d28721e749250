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
        for part, changes in (("text_config", self.text), ("vision_config", self.vision)):
            if changes:
                raw[part].update(changes)
        return {**raw, **self.outer}


_QWEN2_VL = "Qwen2VLForConditionalGeneration"
_QWEN2_5_VL = "Qwen2_5_VLForConditionalGeneration"
_LLAVA = "LlavaForConditionalGeneration"
_LLAVA_NEXT = "LlavaNextForConditionalGeneration"
_LLAVA_ONEVISION = "LlavaOnevisionForConditionalGeneration"
_SIGLIP = {"model_type": "siglip_vision_model", "vision_use_head": True}

VLM_CASES: dict[str, MediaCase] = {
    "qwen2-vl": MediaCase(_QWEN2_VL),
    "qwen2-vl-head-dim": MediaCase(_QWEN2_VL, vision={"embed_dim": 48, "num_heads": 3}),
    "qwen2-5-vl": MediaCase(_QWEN2_5_VL),
    "qwen2-5-vl-windows-only": MediaCase(
        _QWEN2_5_VL, vision={"fullatt_block_indexes": [], "window_size": 112}
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
