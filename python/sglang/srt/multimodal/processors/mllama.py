"""Llama 3.2 Vision: `<|image|>` stays one token; the pictures are attended to across, not in the place of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sglang.srt.multimodal.inputs import Modality
from sglang.srt.multimodal.processors.base_processor import (
    BaseMultimodalProcessor,
    Features,
    MultimodalSpecialTokens,
)


class MllamaImageProcessor(BaseMultimodalProcessor):
    """`pixel_values` [1, n, tiles, 3, S, S] with `aspect_ratio_ids`, `aspect_ratio_mask`, and `num_tiles` [1, n]."""

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

    def replacements(
        self, modality: Modality, features: Mapping[str, Any]
    ) -> list[list[int]] | None:
        return [[self.hf_config.image_token_id] for _ in features["num_tiles"][0]]
