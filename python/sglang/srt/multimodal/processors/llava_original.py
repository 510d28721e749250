"""LLaVA as its authors publish it: pictures as in the transformers class that config.json amounts to (`configs/llava.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sglang.srt.multimodal.inputs import Modality
from sglang.srt.multimodal.processors.base_processor import Features
from sglang.srt.multimodal.processors.llava import (
    LlavaImageProcessor,
    LlavaNextImageProcessor,
    LlavaOnevisionImageProcessor,
)
from sglang.srt.utils.errors import ConfigError

_KINDS: dict[str, Any] = {
    "llava": LlavaImageProcessor,
    "llava_next": LlavaNextImageProcessor,
    "llava_onevision": LlavaOnevisionImageProcessor,
}


class LlavaOriginalImageProcessor(LlavaOnevisionImageProcessor):
    """The tokenizer says which tokens stand for media: `<image>`, and `<video>` where it has one."""

    models: list[Any] = [
        *("LlavaLlamaForCausalLM", "LlavaQwenForCausalLM", "LlavaMistralForCausalLM")
    ]

    def __init__(
        self, hf_config: Any, server_args: Any, _processor: Any, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(hf_config, server_args, _processor, *args, **kwargs)
        self.kind = _KINDS[hf_config.model_type]
        self.cuts_tiles = self.kind.cuts_tiles
        if self.video_token_id is None:
            self.modalities = (Modality.IMAGE,)

    def _token_ids(self) -> tuple[int, int | None]:
        vocabulary = self._processor.tokenizer.get_vocab()
        if "<image>" not in vocabulary:
            raise ConfigError(
                "the tokenizer has no token '<image>', so that a prompt cannot say where pictures are; give one that has it "
                "with --tokenizer-path, for example llava-hf/llava-1.5-7b-hf for LLaVA 1.5"
            )
        takes_videos = self.hf_config.model_type == "llava_onevision"
        return vocabulary["<image>"], vocabulary.get("<video>") if takes_videos else None

    def image_features(self, images: list[Any]) -> Features:
        return self.kind.image_features(self, images)

    def call_image_processor(self, images: list[Any]) -> Features:
        return self.kind.call_image_processor(self, images)

    def replacements(
        self, modality: Modality, features: Mapping[str, Any]
    ) -> list[list[int]] | None:
        return self.kind.replacements(self, modality, features)
