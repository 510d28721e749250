"""Gemma 3: `<start_of_image>` becomes a paragraph with the image's rows between its start and end tokens.

With pan and scan a long or wide image comes with crops of itself, each in a paragraph of its own, and a sentence says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sglang.srt.multimodal.inputs import Modality
from sglang.srt.multimodal.processors.base_processor import (
    BaseMultimodalProcessor,
    MultimodalSpecialTokens,
)
from sglang.srt.multimodal.processors.newlines import join_newlines
from sglang.srt.utils.errors import RequestError

# Published files hold null for these; the values are those of transformers' processor, which asks no file for the first one.
_PAN_AND_SCAN = {
    "do_pan_and_scan": False,
    "pan_and_scan_min_crop_size": 256,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}
_WHOLE = "Here is the original image "
_CROPS = " and here are some crops to help you see better "


class Gemma3ImageProcessor(BaseMultimodalProcessor):
    """`--mm-process-config '{"image": {"do_pan_and_scan": true}}'` turns crops on."""

    models: list[Any] = ["Gemma3ForConditionalGeneration"]
    modalities = (Modality.IMAGE,)

    def __init__(
        self, hf_config: Any, server_args: Any, _processor: Any, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(hf_config, server_args, _processor, *args, **kwargs)
        self.ATTR_NAME_TO_MODALITY["num_crops"] = Modality.IMAGE
        self.IM_START_TOKEN_ID = hf_config.boi_token_index
        self.IM_END_TOKEN_ID = hf_config.eoi_token_index
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
        ids = join_newlines(result["input_ids"], self._processor.tokenizer)
        for item in result["mm_items"]:
            # From here on views are equal; that of another image would change the digest of this one.
            item.model_specific_data.pop("num_crops", None)
            item.offsets = self.get_mm_items_offset(ids, self.hf_config.image_token_id)
        return {
            **result,
            "input_ids": ids,
            "im_start_id": self.IM_START_TOKEN_ID,
            "im_end_id": self.IM_END_TOKEN_ID,
        }

    def placeholder_id(self, modality: Modality) -> int | None:
        return self.IM_START_TOKEN_ID if modality is Modality.IMAGE else None

    def replacements(
        self, modality: Modality, features: Mapping[str, Any]
    ) -> list[list[int]] | None:
        num_views = len(features["feature"])
        given = features.get("num_crops")
        num_crops = [0] * num_views if given is None else torch.as_tensor(given).flatten().tolist()
        if min(num_crops, default=0) < 0 or num_views != len(num_crops) + sum(num_crops):
            raise RequestError(f"num_crops={num_crops} do not fit {num_views} images with crops")
        return [self._paragraphs(count) for count in num_crops]

    def _paragraphs(self, num_crops: int) -> list[int]:
        """Ids of an image and its crops."""
        encode = self._processor.tokenizer.encode
        rows = [self.hf_config.image_token_id] * self.hf_config.mm_tokens_per_image
        view = [self.IM_START_TOKEN_ID, *rows, self.IM_END_TOKEN_ID]
        if not num_crops:
            texts = ["\n\n", "\n\n"]
        else:
            between = ["\n\n \n\n"] * (num_crops - 1)
            texts = [f"{_WHOLE}\n\n", f"\n\n{_CROPS}\n\n", *between, "\n\n"]
        first, *others = [list(encode(text, add_special_tokens=False)) for text in texts]
        return first + [token for text in others for token in (*view, *text)]

    def _options(self, kind: str) -> dict[str, Any]:
        return {**_PAN_AND_SCAN, **super()._options(kind)}
