"""Prompts of LLaVA 1.5, LLaVA-NeXT and LLaVA-OneVision: squares, pictures in tiles, frames."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sglang.srt.multimodal.inputs import Modality
from sglang.srt.multimodal.tiles import TileLayout
from sglang.verify.media import MediaPrompt
from sglang.verify.media_llava_names import llava_config
from sglang.verify.media_prompts import (
    Medium,
    image_prompts,
    joined_data,
    lay_out,
    name_specials,
    padded,
    random_text,
    write_settings,
)

_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

_TOKENS = ("<image>", "<video>")


class Llava:
    """LLaVA 1.5. `processor` is the beginning of the names of its classes in transformers."""

    processor = "Llava"

    def silent_ids(self, raw: Mapping[str, Any]) -> list[int]:
        return [raw[key] for key in ("image_token_index", "video_token_index") if key in raw]

    def prompts(self, raw: Mapping[str, Any]) -> dict[str, MediaPrompt]:
        generator = torch.Generator().manual_seed(7)
        text = functools.partial(random_text, generator)
        media = self.pictures(raw, generator)
        lay = functools.partial(lay_out, self.arguments, {"im_token_id": raw["image_token_index"]})
        return image_prompts(lay, text, *media)

    def pictures(
        self, raw: Mapping[str, Any], generator: torch.Generator
    ) -> tuple[Medium, Medium, Medium]:
        return (
            self.square(raw, generator),
            self.square(raw, generator),
            self.square(raw, generator),
        )

    def square(self, raw: Mapping[str, Any], generator: torch.Generator) -> Medium:
        pixels = _pixels(raw, generator)
        token_id = raw["image_token_index"]
        return Medium(Modality.IMAGE, [token_id] * _num_whole(raw), token_id, pixels)

    def arguments(self, media: Sequence[Medium], ids: Sequence[int]) -> dict[str, Any]:
        return {"pixel_values": torch.stack([medium.feature for medium in media])}

    def write_processor(self, raw: Mapping[str, Any], folder: str) -> None:
        settings = {
            "processor_class": f"{self.processor}Processor",
            "image_processor_type": f"{self.processor}ImageProcessor",
            **image_settings(raw["vision_config"]),
        }
        if "image_grid_pinpoints" in raw:
            settings["image_grid_pinpoints"] = raw["image_grid_pinpoints"]
        write_settings(Path(folder), settings)
        whole = {"processor_class": f"{self.processor}Processor", **self.processor_settings(raw)}
        Path(folder, "processor_config.json").write_text(json.dumps(whole, indent=2))
        name_specials(Path(folder), dict(zip(self.silent_ids(raw), _TOKENS, strict=False)))

    def processor_settings(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """What published checkpoints say in processor_config.json."""
        vision = raw["vision_config"]
        return {
            "image_token": _TOKENS[0],
            "patch_size": vision["patch_size"],
            "num_additional_image_tokens": int(vision["model_type"] == "clip_vision_model"),
            "vision_feature_select_strategy": raw["vision_feature_select_strategy"],
        }


class LlavaNext(Llava):
    """Pictures of any size in tiles."""

    processor = "LlavaNext"

    def pictures(
        self, raw: Mapping[str, Any], generator: torch.Generator
    ) -> tuple[Medium, Medium, Medium]:
        side = raw["vision_config"]["image_size"]
        # Wide, wide, and nearly square with more tiles.
        sizes = ((side, 2 * side + 4), (side, 2 * side + 4), (3 * side + 1, 3 * side - 20))
        first, other, second = (self.tiled(raw, size, generator) for size in sizes)
        return first, other, second

    def tiled(
        self, raw: Mapping[str, Any], size: tuple[int, int], generator: torch.Generator
    ) -> Medium:
        """A picture of (height, width) pixels."""
        layout = _layout(raw)
        rows, columns = layout.tiles(*size)
        tiles = torch.stack([_pixels(raw, generator) for _ in range(1 + rows * columns)])
        token_id = raw["image_token_index"]
        ids = [token_id] * layout.num_rows(*size, _num_whole(raw))
        return Medium(Modality.IMAGE, ids, token_id, tiles, {"image_sizes": torch.tensor([size])})

    def arguments(self, media: Sequence[Medium], ids: Sequence[int]) -> dict[str, Any]:
        """Transformers takes tiles of all pictures in one tensor, padded."""
        images = [medium for medium in media if medium.modality is Modality.IMAGE]
        if not images:
            return {}
        return {
            "pixel_values": padded(medium.feature for medium in images),
            **joined_data(images, Modality.IMAGE),
        }


class LlavaOnevision(LlavaNext):
    """Tiles for one picture, none for several; videos."""

    processor = "LlavaOnevision"

    def prompts(self, raw: Mapping[str, Any]) -> dict[str, MediaPrompt]:
        generator = torch.Generator().manual_seed(8)
        text = functools.partial(random_text, generator)
        token_ids = {
            "im_token_id": raw["image_token_index"],
            "video_token_id": raw["video_token_index"],
        }
        lay = functools.partial(lay_out, self.arguments, token_ids)
        first, other, second = self.pictures(raw, generator)
        found = image_prompts(lay, text, first, other, second)
        wholes = [self.whole(raw, generator) for _ in range(3)]
        several = image_prompts(lay, text, *wholes)
        video = self.video(raw, 3, generator)
        return {
            **found,
            "two images": several["two images"],
            "second differs": several["second differs"],
            "video": lay([text(7), video, text(9)]),
            "image and video": lay([text(4), video, text(5), second, text(6)]),
        }

    def processor_settings(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "image_token": _TOKENS[0],
            "video_token": _TOKENS[1],
            "num_image_tokens": _layout(raw).side ** 2,
            "vision_feature_select_strategy": raw["vision_feature_select_strategy"],
            "vision_aspect_ratio": raw.get("vision_aspect_ratio", "anyres_max_9"),
        }

    def whole(self, raw: Mapping[str, Any], generator: torch.Generator) -> Medium:
        """A picture among several: not cut, and a newline behind it."""
        side = raw["vision_config"]["image_size"]
        token_id = raw["image_token_index"]
        return Medium(
            Modality.IMAGE,
            [token_id] * (_num_whole(raw) + 1),
            token_id,
            _pixels(raw, generator)[None],
            {"image_sizes": torch.tensor([(side, 3 * side)])},
        )

    def video(self, raw: Mapping[str, Any], num_frames: int, generator: torch.Generator) -> Medium:
        frames = torch.stack([_pixels(raw, generator) for _ in range(num_frames)])
        pooled = (_layout(raw).side + 1) // 2
        token_id = raw["video_token_index"]
        ids = [token_id] * (num_frames * pooled**2 + 1)
        return Medium(Modality.VIDEO, ids, token_id, frames)

    def arguments(self, media: Sequence[Medium], ids: Sequence[int]) -> dict[str, Any]:
        images = [medium for medium in media if medium.modality is Modality.IMAGE]
        found = super().arguments(media, ids)
        if images:
            found["batch_num_images"] = torch.tensor([len(images)])
        videos = [medium.feature for medium in media if medium.modality is Modality.VIDEO]
        if videos:
            found["pixel_values_videos"] = torch.stack(videos)
        return found


_BY_TYPE: dict[str, Llava] = {
    "llava": Llava(),
    "llava_next": LlavaNext(),
    "llava_onevision": LlavaOnevision(),
}


class LlavaOriginal:
    """The three under the names of their authors, with files of the tower beside the checkpoint."""

    def silent_ids(self, raw: Mapping[str, Any]) -> list[int]:
        found = llava_config(raw)
        return _BY_TYPE[found["model_type"]].silent_ids(found)

    def prompts(self, raw: Mapping[str, Any]) -> dict[str, MediaPrompt]:
        found = llava_config(raw)
        return _BY_TYPE[found["model_type"]].prompts(found)

    def write_processor(self, raw: Mapping[str, Any], folder: str) -> None:
        tower = Path(folder, raw["mm_vision_tower"])
        tower.mkdir(exist_ok=True)
        write_settings(tower, image_settings(raw["vision_config"]))
        name_specials(Path(folder), dict(zip(self.silent_ids(raw), _TOKENS, strict=False)))


def image_settings(vision: Mapping[str, Any]) -> dict[str, Any]:
    """How a tower takes its squares."""
    side = vision["image_size"]
    square = {"height": side, "width": side}
    if vision["model_type"] == "clip_vision_model":
        size = {"size": {"shortest_edge": side}, "crop_size": square}
    else:
        size = {"size": square}
    return {"image_mean": _CLIP_MEAN, "image_std": _CLIP_STD, **size}


def _pixels(raw: Mapping[str, Any], generator: torch.Generator) -> torch.Tensor:
    side = raw["vision_config"]["image_size"]
    return torch.randn(3, side, side, generator=generator)


def _num_whole(raw: Mapping[str, Any]) -> int:
    """Rows of a picture that is one square."""
    vision = raw["vision_config"]
    has_class_row = vision["model_type"] == "clip_vision_model"
    is_dropped = raw["vision_feature_select_strategy"] == "default"
    return (vision["image_size"] // vision["patch_size"]) ** 2 + has_class_row - is_dropped


def _layout(raw: Mapping[str, Any]) -> TileLayout:
    from transformers import CONFIG_MAPPING  # late: heavy

    return TileLayout.of(CONFIG_MAPPING[raw["model_type"]].from_dict(dict(raw)))
