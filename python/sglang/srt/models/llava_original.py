"""LLaVA as its authors publish it: LLaVA 1.5 and LLaVA-NeXT on Llama, Qwen2 and Mistral, LLaVA-OneVision (github.com/haotian-liu/LLaVA).

    rows and mathematics are those of `llava.py`, `llava_next.py` and `llava_onevision.py`

Differs from those:
- names of tensors; a checkpoint whose tower was not trained has none, and the tower comes from `mm_vision_tower`;
- `image_aspect_ratio` in config.json says which of the three it is (`configs/llava.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from sglang.srt.configs.llava import tower_path
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.model_loader.weight_utils import find_checkpoint_files, local_checkpoint_folder
from sglang.srt.models.common.weights import GATE_UP, QKV, WeightMap, find_unfilled
from sglang.srt.models.llava import LlavaForConditionalGeneration, LlavaTower
from sglang.srt.models.llava_next import LlavaNextTower
from sglang.srt.models.llava_onevision import (
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionTower,
)
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.multimodal.inputs import MultimodalDataItem
from sglang.srt.utils import add_prefix

_TOWER = "model.vision_tower.vision_tower.vision_model."
_NAMES = WeightsMapper(
    orig_to_new_prefix={
        _TOWER: "visual.vision_tower.",
        "model.mm_projector.0.": "visual.multi_modal_projector.linear_1.",
        "model.mm_projector.2.": "visual.multi_modal_projector.linear_2.",
        "model.image_newline": "visual.image_newline",
    },
    orig_to_new_substr={".self_attn.out_proj.": ".self_attn.proj."},
)
_TOWERS: dict[str, type[LlavaTower]] = {
    "llava": LlavaTower,
    "llava_next": LlavaNextTower,
    "llava_onevision": LlavaOnevisionTower,
}


class LlavaLlamaForCausalLM(LlavaOnevisionForConditionalGeneration):
    """`config` is that of transformers' class."""

    weight_map = WeightMap(stacked=(*QKV, *GATE_UP), rename=_NAMES)

    @property
    def has_tiles(self) -> bool:
        return self.config.model_type != "llava"

    def make_tower(
        self, config: Any, quant_config: QuantizationConfig | None, prefix: str
    ) -> torch.nn.Module:
        tower = _TOWERS[config.model_type]
        return tower(config, quant_config, add_prefix("visual", prefix))

    def check(self, item: MultimodalDataItem) -> None:
        if self.has_tiles:
            super().check(item)
        else:
            LlavaForConditionalGeneration.check(self, item)

    def get_image_feature(self, items: list[MultimodalDataItem]) -> torch.Tensor:  # [N, D]
        if self.has_tiles:
            return super().get_image_feature(items)
        return LlavaForConditionalGeneration.get_image_feature(self, items)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return super().load_weights(self._with_tower(weights))

    def _with_tower(
        self, weights: Iterable[tuple[str, torch.Tensor]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The checkpoint's tensors, and those of the published tower when it has none and they were never loaded."""
        has_tower = False
        for name, tensor in weights:
            has_tower = has_tower or name.startswith(_TOWER)
            yield name, tensor
        if has_tower or not find_unfilled(self.visual.vision_tower):
            return
        path = tower_path(self.config.to_dict(), self.config.name_or_path)
        folder = local_checkpoint_folder(path, None, "auto")
        for name, tensor in find_checkpoint_files(folder).stream():
            if name.startswith("vision_model."):
                yield _TOWER + name.removeprefix("vision_model."), tensor


class LlavaQwenForCausalLM(LlavaLlamaForCausalLM):
    """With Qwen2 for Llama."""


class LlavaMistralForCausalLM(LlavaLlamaForCausalLM):
    """With Mistral for Llama."""


EntryClass = [LlavaLlamaForCausalLM, LlavaQwenForCausalLM, LlavaMistralForCausalLM]
