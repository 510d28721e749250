"""Gemma 3: `<start_of_image>` becomes a paragraph with the image's rows between its start and end tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sglang.srt.multimodal.inputs import Modality
from sglang.srt.multimodal.processors.base_processor import (
    BaseMultimodalProcessor,
    MultimodalSpecialTokens,
)
from sglang.srt.multimodal.processors.newlines import join_newlines


class Gemma3ImageProcessor(BaseMultimodalProcessor):
    """Crops (`do_pan_and_scan`) are not supported: `--mm-process-config` cannot turn them on."""

    models: list[Any] = ["Gemma3ForConditionalGeneration"]
    modalities = (Modality.IMAGE,)

    def __init__(
        self, hf_config: Any, server_args: Any, _processor: Any, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(hf_config, server_args, _processor, *args, **kwargs)
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
        config = self.hf_config
        blank = list(self._processor.tokenizer.encode("\n\n", add_special_tokens=False))
        rows = [config.image_token_id] * config.mm_tokens_per_image
        new = [*blank, self.IM_START_TOKEN_ID, *rows, self.IM_END_TOKEN_ID, *blank]
        return [new for _ in features["feature"]]

    def _options(self, kind: str) -> dict[str, Any]:
        return {**super()._options(kind), "do_pan_and_scan": False}
