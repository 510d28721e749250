"""Llama 3.2 Vision: `<|image|>` stays one token; the pictures are attended to across, not in the place of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sglang.srt.multimodal.inputs import Modality, MultimodalDataItem
from sglang.srt.multimodal.processors.base_processor import (
    BaseMultimodalProcessor,
    Features,
    MultimodalSpecialTokens,
)

# Of features of n pictures.
_NUM_DIMS = {"pixel_values": 5, "aspect_ratio_ids": 1, "aspect_ratio_mask": 2, "num_tiles": 1}


class MllamaImageProcessor(BaseMultimodalProcessor):
    """`pixel_values` [n, tiles, 3, S, S] with `aspect_ratio_ids` [n], `aspect_ratio_mask` [n, tiles], and `num_tiles` [n].

    The tiles of every picture are as many as the model takes at most, those behind its own being padding. Which tokens see it is not a
    feature: the model derives that from the prompt.
    """

    models: list[Any] = ["MllamaForConditionalGeneration"]
    modalities = (Modality.IMAGE,)

    def __init__(
        self, hf_config: Any, server_args: Any, _processor: Any, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(hf_config, server_args, _processor, *args, **kwargs)
        self.ATTR_NAME_TO_MODALITY["num_tiles"] = Modality.IMAGE
        self.mm_tokens = MultimodalSpecialTokens(image_token_id=hf_config.image_token_id).build(
            _processor
        )

    async def process_mm_data_async(
        self,
        image_data: Any = None,
        audio_data: Any = None,
        input_text: Any = "",
        request_obj: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any] | None:
        return self.prepare(image_data, audio_data, input_text, request_obj)

    def image_features(self, images: list[Any]) -> Features:
        features = dict(self._call(self._processor.image_processor, "image", images=[images]))
        features["num_tiles"] = torch.as_tensor(features["num_tiles"])
        return features

    def collect_mm_items_from_processor_output(
        self, data_dict: Mapping[str, Any], modality: Modality | None = None
    ) -> list[MultimodalDataItem]:
        """One entry per picture: Hugging Face's processor puts an axis of prompts in front."""
        found = {name: _without_prompts(name, value) for name, value in data_dict.items()}
        return super().collect_mm_items_from_processor_output(found, modality)

    def replacements(
        self, modality: Modality, features: Mapping[str, Any]
    ) -> list[list[int]] | None:
        return [[self.hf_config.image_token_id] for _ in features["feature"]]


def _without_prompts(name: str, value: Any) -> Any:
    is_nested = isinstance(value, torch.Tensor) and value.dim() == _NUM_DIMS.get(name, -2) + 1
    return value[0] if is_nested and len(value) == 1 else value
