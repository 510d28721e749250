"""Qwen2-Audio: `<|AUDIO|>` becomes one id per 40 ms of sound."""

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
from sglang.srt.utils.errors import RequestError


class Qwen2AudioMultimodalProcessor(BaseMultimodalProcessor):
    """Sounds are cut at the length of the feature extractor's window (30 s), as its own processor does."""

    models: list[Any] = ["Qwen2AudioForConditionalGeneration"]
    modalities = (Modality.AUDIO,)

    def __init__(
        self, hf_config: Any, server_args: Any, _processor: Any, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(hf_config, server_args, _processor, *args, **kwargs)
        self.mm_tokens = MultimodalSpecialTokens(audio_token_id=hf_config.audio_token_id).build(
            _processor
        )
        self.sample_rate: int = _processor.feature_extractor.sampling_rate

    async def process_mm_data_async(
        self,
        image_data: Any = None,
        audio_data: Any = None,
        input_text: Any = "",
        request_obj: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any] | None:
        return self.prepare(
            image_data, audio_data, input_text, request_obj, audio_sample_rate=self.sample_rate
        )

    def audio_features(self, audios: list[Any]) -> Features:
        """`input_features` [n, mel bins, frames] and which of the frames are sound."""
        output = self._call(
            self._extract,
            "audio",
            raw_speech=audios,
            sampling_rate=self.sample_rate,
            return_attention_mask=True,
            padding="max_length",
        )
        mask = output["attention_mask"]
        return {
            "input_features": output["input_features"],
            "feature_attention_mask": mask,
            "audio_feature_lens": mask.sum(-1),
        }

    def _extract(self, raw_speech: list[Any], **kwargs: Any) -> Any:
        return self._processor.feature_extractor(raw_speech, **kwargs)

    def replacements(
        self, modality: Modality, features: Mapping[str, Any]
    ) -> list[list[int]] | None:
        """Two convolutions and a pooling halve the frames twice."""
        frames = torch.as_tensor(features["audio_feature_lens"])
        rows = ((frames - 1) // 2 + 1 - 2) // 2 + 1
        if any(count < 1 for count in rows.tolist()):
            raise RequestError("the audio is too short for this model; send at least 0.1 seconds")
        return [[self.hf_config.audio_token_id] * count for count in rows.tolist()]
