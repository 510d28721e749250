"""Prompts of InternVL: pictures in tiles, their rows between a start and an end token."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sglang.srt.multimodal.inputs import Modality
from sglang.verify.media import MediaPrompt
from sglang.verify.media_internvl_chat import CHAT_IMAGE_ID
from sglang.verify.media_prompts import (
    Medium,
    image_prompts,
    in_one_tensor,
    lay_out,
    name_specials,
    random_text,
    write_settings,
)

_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class InternVL:
    """The family. The start and end tokens have the ids behind the picture's."""

    def silent_ids(self, raw: Mapping[str, Any]) -> list[int]:
        return [_image_id(raw)]

    def prompts(self, raw: Mapping[str, Any]) -> dict[str, MediaPrompt]:
        generator = torch.Generator().manual_seed(7)
        text = functools.partial(random_text, generator)
        first, other = (_picture(raw, 3, generator) for _ in range(2))
        second = _picture(raw, 5, generator)
        lay = functools.partial(lay_out, _arguments, {"im_token_id": _image_id(raw)})
        found = image_prompts(lay, text, first, other, second)
        return {name: in_one_tensor(prompt, torch.cat) for name, prompt in found.items()}

    def write_processor(self, raw: Mapping[str, Any], folder: str) -> None:
        side = _side(raw["vision_config"]["image_size"])
        settings = {
            "processor_class": "InternVLProcessor",
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": {"height": side, "width": side},
            "crop_to_patches": True,
            "min_patches": 1,
            "max_patches": 4,
            "image_mean": _MEAN,
            "image_std": _STD,
        }
        write_settings(Path(folder), settings)
        first = _image_id(raw)
        name_specials(
            Path(folder), {first: "<IMG_CONTEXT>", first + 1: "<img>", first + 2: "</img>"}
        )


def _picture(raw: Mapping[str, Any], num_tiles: int, generator: torch.Generator) -> Medium:
    vision = raw["vision_config"]
    side, patch = _side(vision["image_size"]), _side(vision["patch_size"])
    rows = (side // patch // round(1 / raw["downsample_ratio"])) ** 2
    token_id = _image_id(raw)
    return Medium(
        Modality.IMAGE,
        [token_id + 1, *[token_id] * (num_tiles * rows), token_id + 2],
        token_id,
        torch.randn(num_tiles, 3, side, side, generator=generator),
        {"num_patches": torch.tensor([num_tiles])},
    )


def _arguments(media: Sequence[Medium], ids: Sequence[int]) -> dict[str, Any]:
    return {"pixel_values": torch.cat([medium.feature for medium in media])}


def _image_id(raw: Mapping[str, Any]) -> int:
    return raw.get("image_token_id", CHAT_IMAGE_ID)


def _side(size: int | list[int]) -> int:
    """Of a square, written as one number or two."""
    return size if isinstance(size, int) else size[0]
