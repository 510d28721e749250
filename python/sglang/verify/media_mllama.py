"""Prompts of Llama 3.2 Vision: a picture is one token; tiles, some of them padding; pictures side by side."""

from __future__ import annotations

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
    in_one_tensor,
    joined_data,
    lay_out,
    name_specials,
    random_text,
    write_settings,
)

# Those of MllamaVisionConfig.
_RATIOS = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]
_MEAN, _STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


class Mllama:
    """The family. The picture's token is behind the vocabulary, so that no answer has it."""

    def silent_ids(self, raw: Mapping[str, Any]) -> list[int]:
        return []

    def prompts(self, raw: Mapping[str, Any]) -> dict[str, MediaPrompt]:
        generator = torch.Generator().manual_seed(7)
        text = functools.partial(random_text, generator)
        first, other = (_picture(raw, 2, generator) for _ in range(2))
        second, small = _picture(raw, 7, generator), _picture(raw, 1, generator)
        arguments = functools.partial(_arguments, raw)
        lay = functools.partial(lay_out, arguments, {"im_token_id": raw["image_token_index"]})
        found = {
            **image_prompts(lay, text, first, other, second),
            "image twice": lay([text(4), first, text(5), first, text(6)]),
            "side by side": lay([text(3), small, text(4), second, first, text(8), small, text(5)]),
            "side by side first": lay([first, small, text(9)]),
            "image last": lay([text(6), second]),
        }
        return {name: in_one_tensor(prompt, torch.stack) for name, prompt in found.items()}

    def write_processor(self, raw: Mapping[str, Any], folder: str) -> None:
        vision = raw["vision_config"]
        side = vision["image_size"]
        settings = {
            "processor_class": "MllamaProcessor",
            "image_processor_type": "MllamaImageProcessor",
            "size": {"height": side, "width": side},
            "max_image_tiles": _max_tiles(raw),
            "image_mean": _MEAN,
            "image_std": _STD,
        }
        write_settings(Path(folder), settings)
        name_specials(Path(folder), {raw["image_token_index"]: "<|image|>"})


def _picture(raw: Mapping[str, Any], ratio_id: int, generator: torch.Generator) -> Medium:
    """Noise, in the tiles that pad the picture too: the others see them."""
    vision = raw["vision_config"]
    side, most = vision["image_size"], _max_tiles(raw)
    ratios = vision.get("supported_aspect_ratios", _RATIOS)
    rows, columns = ratios[ratio_id - 1]
    mask = (torch.arange(most) < rows * columns).long()
    data = {
        "aspect_ratio_ids": torch.tensor([ratio_id]),
        "aspect_ratio_mask": mask[None],
        "num_tiles": torch.tensor([rows * columns]),
    }
    token_id = raw["image_token_index"]
    pixels = torch.randn(most, 3, side, side, generator=generator)
    return Medium(Modality.IMAGE, [token_id], token_id, pixels, data)


def _arguments(
    raw: Mapping[str, Any], media: Sequence[Medium], ids: Sequence[int]
) -> dict[str, Any]:
    """Which token sees which picture is said by transformers' own processor."""
    from transformers.models.mllama import processing_mllama as processing  # late: heavy

    data = joined_data(media, Modality.IMAGE)
    spans = processing.get_cross_attention_token_mask(list(ids), raw["image_token_index"])
    mask = processing.convert_sparse_cross_attention_mask_to_dense(
        [spans], [data["num_tiles"].tolist()], _max_tiles(raw), len(ids)
    )
    return {
        "pixel_values": torch.stack([medium.feature for medium in media])[None],
        "aspect_ratio_ids": data["aspect_ratio_ids"][None],
        "aspect_ratio_mask": data["aspect_ratio_mask"][None],
        "cross_attention_mask": torch.from_numpy(mask),
    }


def _max_tiles(raw: Mapping[str, Any]) -> int:
    return raw["vision_config"].get("max_num_tiles", 4)
