"""LLaVA as its authors publish it (`LlavaLlamaForCausalLM` and its sisters) and as transformers writes it: configs and names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sglang.srt.configs.llava import as_transformers, is_original_llava
from sglang.srt.models.utils import WeightsMapper

Raw = Mapping[str, Any]
Tensors = dict[str, torch.Tensor]

_PARTS = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "multi_modal_projector.linear_1.": "model.mm_projector.0.",
    "multi_modal_projector.linear_2.": "model.mm_projector.2.",
    "vision_tower.vision_model.": "model.vision_tower.vision_tower.vision_model.",
    "image_newline": "model.image_newline",
}


class LlavaNames:
    """Both spellings. A config.json holds that of its tower under `vision_config`."""

    def config(self, raw: Raw) -> dict[str, Any]:
        return llava_config(raw)

    def publish(self, raw: Raw, tensors: Tensors) -> Tensors:
        # Newer versions of transformers leave `vision_model` out.
        shorter = {"vision_tower.": "model.vision_tower.vision_tower.vision_model."}
        return WeightsMapper(orig_to_new_prefix={**shorter, **_PARTS}).apply_dict(tensors)

    def restore(self, raw: Raw, tensors: Tensors) -> Tensors:
        inverse = {theirs: ours for ours, theirs in _PARTS.items()}
        return WeightsMapper(orig_to_new_prefix=inverse).apply_dict(tensors)


def llava_config(raw: Raw) -> dict[str, Any]:
    """The config.json of transformers' class; one that is that already stays as it is."""
    if not is_original_llava(raw):
        return dict(raw)
    found = as_transformers(raw, raw["vision_config"])
    return {**found, "mm_vision_tower": raw.get("mm_vision_tower")}
