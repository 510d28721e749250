"""Prompts of Gemma 3: squares between a start and an end token, each seen as a whole."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sglang.srt.multimodal.inputs import Modality
from sglang.verify.media import MediaPrompt
from sglang.verify.media_prompts import (
    Medium,
    image_prompts,
    lay_out,
    name_specials,
    random_text,
    write_settings,
)

_KEYS = ("boi_token_index", "eoi_token_index", "image_token_index")
_TOKENS = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")


class Gemma3:
    """The family."""

    def silent_ids(self, raw: Mapping[str, Any]) -> list[int]:
        return [raw[key] for key in _KEYS]

    def prompts(self, raw: Mapping[str, Any]) -> dict[str, MediaPrompt]:
        generator = torch.Generator().manual_seed(7)
        text = functools.partial(random_text, generator)
        media = (self.square(raw, generator) for _ in range(3))
        arguments = functools.partial(self.arguments, raw["image_token_index"])
        lay = functools.partial(lay_out, arguments, {"im_token_id": raw["image_token_index"]})
        found = image_prompts(lay, text, *media)
        rows = raw["mm_tokens_per_image"]
        return {
            name: dataclasses.replace(prompt, num_uncut=rows * len(prompt.media_at))
            for name, prompt in found.items()
        }

    def square(self, raw: Mapping[str, Any], generator: torch.Generator) -> Medium:
        start, end, row_id = (raw[key] for key in _KEYS)
        side = raw["vision_config"]["image_size"]
        pixels = torch.randn(3, side, side, generator=generator)
        ids = [start, *[row_id] * raw["mm_tokens_per_image"], end]
        return Medium(Modality.IMAGE, ids, row_id, pixels)

    def arguments(self, row_id: int, media: Sequence[Medium], ids: Sequence[int]) -> dict[str, Any]:
        """Token types say which tokens see each other."""
        return {
            "pixel_values": torch.stack([medium.feature for medium in media]),
            "token_type_ids": torch.tensor([[int(token == row_id) for token in ids]]),
        }

    def write_processor(self, raw: Mapping[str, Any], folder: str) -> None:
        side = raw["vision_config"]["image_size"]
        settings = {
            "processor_class": "Gemma3Processor",
            "image_processor_type": "Gemma3ImageProcessor",
            "size": {"height": side, "width": side},
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        }
        write_settings(Path(folder), settings)
        names = dict(zip(self.silent_ids(raw), _TOKENS, strict=True))
        name_specials(Path(folder), names)
