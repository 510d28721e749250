"""InternVL 2.5 and 3 as transformers publishes them: pictures are cut into tiles, each tile has as many rows."""

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
from sglang.srt.utils.errors import ConfigError

_START, _END = "<img>", "</img>"


class InternVLImageProcessor(BaseMultimodalProcessor):
    """`<IMG_CONTEXT>` becomes `<img>`, the rows of all tiles, `</img>`."""

    models: list[Any] = ["InternVLForConditionalGeneration"]
    modalities = (Modality.IMAGE,)

    def __init__(
        self, hf_config: Any, server_args: Any, _processor: Any, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(hf_config, server_args, _processor, *args, **kwargs)
        ids = _processor.tokenizer.convert_tokens_to_ids([_START, _END])
        if None in ids or len(set(ids)) < 2:
            raise ConfigError(f"the tokenizer of this InternVL has no tokens {_START} and {_END}")
        self.IM_START_TOKEN_ID, self.IM_END_TOKEN_ID = ids
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
        result = self.prepare(image_data, audio_data, input_text, request_obj)
        return {
            **result,
            "im_start_id": self.IM_START_TOKEN_ID,
            "im_end_id": self.IM_END_TOKEN_ID,
        }

    def image_features(self, images: list[Any]) -> Features:
        features = dict(super().image_features(images))
        features["num_patches"] = torch.as_tensor(features["num_patches"])
        return features

    def replacements(
        self, modality: Modality, features: Mapping[str, Any]
    ) -> list[list[int]] | None:
        rows = [self.hf_config.image_token_id] * self.hf_config.image_seq_length
        return [
            [self.IM_START_TOKEN_ID, *(rows * tiles), self.IM_END_TOKEN_ID]
            for tiles in features["num_patches"].tolist()
        ]

    def _options(self, kind: str) -> dict[str, Any]:
        return {"crop_to_patches": True, **super()._options(kind)}
