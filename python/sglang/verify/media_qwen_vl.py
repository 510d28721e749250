"""Prompts of Qwen2-VL and Qwen2.5-VL: pictures and videos as patches, their tokens between a start and an end."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sglang.srt.layers.rotary_embedding import MRotaryEmbedding
from sglang.srt.multimodal.inputs import Modality, MultimodalDataItem
from sglang.verify.media import MediaPrompt
from sglang.verify.media_prompts import name_specials

_SPECIALS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_KEYS = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")


@dataclasses.dataclass(frozen=True)
class _Medium:
    """`grid` (t, h, w) in patches; `feature` [t * h * w, values of a patch]. `seconds` between the frames of a video."""

    is_video: bool
    grid: tuple[int, int, int]
    feature: torch.Tensor
    seconds: float = 0.5


class QwenVL:
    """The family; `processor_class` is written into the processor's files."""

    def __init__(self, processor_class: str) -> None:
        self._processor_class = processor_class

    def silent_ids(self, raw: Mapping[str, Any]) -> list[int]:
        return [raw[key] for key in _KEYS]

    def prompts(self, raw: Mapping[str, Any]) -> dict[str, MediaPrompt]:
        generator = torch.Generator().manual_seed(7)

        def text(count: int) -> list[int]:
            return torch.randint(3, 390, (count,), generator=generator).tolist()

        def medium(t: int, h: int, w: int, is_video: bool = False) -> _Medium:
            patch = _values_per_patch(raw)
            values = torch.randn(t * h * w, patch, generator=generator)
            return _Medium(is_video, (t, h, w), values)

        first, other, second = medium(1, 6, 8), medium(1, 6, 8), medium(1, 10, 4)
        video = medium(3, 8, 4, is_video=True)
        before, between, after = text(7), text(5), text(9)
        lay = functools.partial(_lay_out, raw)
        return {
            "image": lay([before, first, after]),
            "other image": lay([before, other, after]),
            "two images": lay([before, first, between, second, after]),
            "second differs": lay([before, first, between, other, after]),
            "image first": lay([[], second, after]),
            "video": lay([before, video, after]),
            "image and video": lay([before, video, between, first, after]),
        }

    def write_processor(self, raw: Mapping[str, Any], folder: str) -> None:
        vision = raw["vision_config"]
        block = (vision["spatial_merge_size"] * vision["patch_size"]) ** 2
        settings = {
            "processor_class": self._processor_class,
            "image_processor_type": "Qwen2VLImageProcessor",
            "size": {"shortest_edge": block, "longest_edge": 16 * block},
            "patch_size": vision["patch_size"],
            "merge_size": vision["spatial_merge_size"],
            "temporal_patch_size": vision["temporal_patch_size"],
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        }
        path = Path(folder, "preprocessor_config.json")
        path.write_text(json.dumps(settings, indent=2))
        name_specials(
            Path(folder), {raw[key]: name for key, name in zip(_KEYS, _SPECIALS, strict=True)}
        )


def _values_per_patch(raw: Mapping[str, Any]) -> int:
    vision = raw["vision_config"]
    channels = vision.get("in_channels", 3)
    return channels * vision["temporal_patch_size"] * vision["patch_size"] ** 2


def _lay_out(raw: Mapping[str, Any], pieces: Sequence[list[int] | _Medium]) -> MediaPrompt:
    """A prompt of text and media in turn."""
    start, end, image, video = (raw[key] for key in _KEYS)
    merge = raw["vision_config"]["spatial_merge_size"]
    ids: list[int] = []
    placed: list[tuple[_Medium, tuple[int, int]]] = []
    for piece in pieces:
        if not isinstance(piece, _Medium):
            ids += piece
            continue
        count = math.prod(piece.grid) // merge**2
        ids.append(start)
        placed.append((piece, (len(ids), len(ids) + count - 1)))
        ids += [video if piece.is_video else image] * count + [end]
    return MediaPrompt(
        token_ids=ids,
        inputs_for=functools.partial(_inputs, raw, placed),
        arguments_for=functools.partial(_arguments, raw, [medium for medium, _ in placed]),
        media_at=tuple(first for _, (first, _) in placed),
    )


def _inputs(
    raw: Mapping[str, Any], placed: Sequence[tuple[_Medium, tuple[int, int]]], ids: list[int]
) -> dict[str, Any]:
    """As a processor returns it: one item per kind."""
    items = []
    for is_video, modality in ((False, Modality.IMAGE), (True, Modality.VIDEO)):
        mine = [(medium, place) for medium, place in placed if medium.is_video == is_video]
        if not mine:
            continue
        item = MultimodalDataItem(
            modality,
            offsets=[place for _, place in mine],
            feature=torch.cat([medium.feature for medium, _ in mine]),
        )
        grids = torch.tensor([medium.grid for medium, _ in mine])
        item.set("video_grid_thw" if is_video else "image_grid_thw", grids)
        if is_video:
            item.set("second_per_grid_ts", torch.tensor([medium.seconds for medium, _ in mine]))
        items.append(item)
    positions, delta = _positions(raw, [medium for medium, _ in placed], ids)
    return {
        "mm_items": items,
        "im_token_id": raw["image_token_id"],
        "video_token_id": raw["video_token_id"],
        "mrope_positions": positions,
        "mrope_position_delta": delta,
    }


def _positions(
    raw: Mapping[str, Any], media: Sequence[_Medium], ids: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    vision = raw["vision_config"]
    images, videos = _grids(media)
    positions, delta = MRotaryEmbedding.get_rope_index(
        spatial_merge_size=vision["spatial_merge_size"],
        image_token_id=raw["image_token_id"],
        video_token_id=raw["video_token_id"],
        vision_start_token_id=raw["vision_start_token_id"],
        model_type=raw["model_type"],
        tokens_per_second=vision.get("tokens_per_second"),
        input_ids=torch.tensor([ids]),
        image_grid_thw=images,
        video_grid_thw=videos,
        second_per_grid_ts=[medium.seconds for medium in media if medium.is_video],
    )
    return positions[:, 0], delta


def _arguments(
    raw: Mapping[str, Any], media: Sequence[_Medium], ids: Sequence[int]
) -> dict[str, Any]:
    """What transformers' model takes beside the ids."""
    kinds = {raw["image_token_id"]: 1, raw["video_token_id"]: 2}
    found: dict[str, Any] = {"mm_token_type_ids": torch.tensor([[kinds.get(i, 0) for i in ids]])}
    found["image_grid_thw"], found["video_grid_thw"] = _grids(media)
    for name, is_video in (("pixel_values", False), ("pixel_values_videos", True)):
        features = [medium.feature for medium in media if medium.is_video == is_video]
        if features:
            found[name] = torch.cat(features)
    seconds = [medium.seconds for medium in media if medium.is_video]
    if seconds and "tokens_per_second" in raw["vision_config"]:
        found["second_per_grid_ts"] = torch.tensor(seconds)
    return {key: value for key, value in found.items() if value is not None}


def _grids(media: Sequence[_Medium]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Grids of the images and of the videos, [n, 3] or None."""
    images = [medium.grid for medium in media if not medium.is_video]
    videos = [medium.grid for medium in media if medium.is_video]
    return (
        torch.tensor(images) if images else None,
        torch.tensor(videos) if videos else None,
    )
