"""config.json of LLaVA as its authors publish it, read as the config of the transformers class with the same mathematics.

The language model's keys are at the top, the tower is named by `mm_vision_tower` (a hub id, a path, or a path below the checkpoint that
begins with a dot), and `image_aspect_ratio` says how pictures are cut: "pad" as LLaVA 1.5, "anyres" as LLaVA-NeXT, "anyres_max_9" as
LLaVA-OneVision. Source: the published config.json files and the code of github.com/haotian-liu/LLaVA.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sglang.srt.utils.errors import ConfigError

# architecture -> type of its language model
ORIGINAL_LLAVA = {
    "LlavaLlamaForCausalLM": "llama",
    "LlavaQwenForCausalLM": "qwen2",
    "LlavaMistralForCausalLM": "mistral",
}
_IMAGE_TOKEN_ID = {"llama": 32000, "qwen2": 151646, "mistral": 32000}
_PROJECTORS = ("mlp2x_gelu",)
_ONE_SQUARE = (None, "pad", "square")
_OF_TOWER = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}


def is_original_llava(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is of that kind."""
    names = raw.get("architectures") or [""]
    return names[0] in ORIGINAL_LLAVA and "text_config" not in raw


def tower_path(raw: Mapping[str, Any], model_path: str) -> str:
    """Where the tower's own files are: a folder or a hub id. Raises ConfigError when the config does not say."""
    named = raw.get("mm_vision_tower")
    if not named:
        raise ConfigError(f"config.json of {model_path!r} names no mm_vision_tower")
    return str(Path(model_path, named)) if str(named).startswith(".") else str(named)


def as_transformers(raw: Mapping[str, Any], tower: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of transformers' class. `tower` is the config.json of `mm_vision_tower`. Raises ConfigError."""
    language = ORIGINAL_LLAVA[raw["architectures"][0]]
    vision = _vision_config(tower)
    aspect = raw.get("image_aspect_ratio")
    has_tiles = aspect not in _ONE_SQUARE
    _refuse_unknown(raw, aspect, has_tiles)
    is_clip = vision["model_type"] == "clip_vision_model"
    drops_first = is_clip and raw.get("mm_vision_select_feature", "patch") == "patch"
    text = {key: value for key, value in raw.items() if not key.startswith("mm_")}
    found = {
        "model_type": "llava",
        "architectures": raw["architectures"],
        "text_config": {**text, "model_type": language, "architectures": None},
        "vision_config": vision,
        "vision_feature_layer": raw.get("mm_vision_select_layer", -2),
        "vision_feature_select_strategy": "default" if drops_first else "full",
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": bool(raw.get("tie_word_embeddings")),
        "image_token_index": raw.get("image_token_index", _IMAGE_TOKEN_ID[language]),
        "mm_vision_tower": raw.get("mm_vision_tower"),
    }
    for key in ("bos_token_id", "eos_token_id", "pad_token_id", "torch_dtype", "dtype"):
        if raw.get(key) is not None:
            found[key] = raw[key]
    if has_tiles:
        found["model_type"] = "llava_onevision" if "max" in str(aspect) else "llava_next"
        found["image_grid_pinpoints"] = _canvases(
            raw.get("image_grid_pinpoints"), vision["image_size"]
        )
        found["vision_aspect_ratio"] = aspect
    if found["model_type"] == "llava_onevision":
        # Published checkpoints have no token for videos.
        found["video_token_index"] = raw.get("video_token_index", found["image_token_index"] + 1)
    return found


def _refuse_unknown(raw: Mapping[str, Any], aspect: Any, has_tiles: bool) -> None:
    if has_tiles and not re.fullmatch(r"anyres(_max_\d+)?", str(aspect)):
        raise ConfigError(
            f"image_aspect_ratio={aspect!r} is not supported; allowed: pad, square, anyres, anyres_max_N"
        )
    if has_tiles and raw.get("mm_patch_merge_type") != "spatial_unpad":
        raise ConfigError(
            f"mm_patch_merge_type={raw.get('mm_patch_merge_type')!r} is not supported; allowed: spatial_unpad"
        )
    if raw.get("mm_projector_type", "linear") not in _PROJECTORS:
        raise ConfigError(
            f"mm_projector_type={raw.get('mm_projector_type')!r} is not supported; allowed: {', '.join(_PROJECTORS)}"
        )


def _vision_config(tower: Mapping[str, Any]) -> dict[str, Any]:
    """The tower's part of the config.json of a CLIP or SigLIP model, or of its tower alone."""
    kind = str(tower.get("model_type"))
    inner = dict(tower.get("vision_config") or tower)
    inner["model_type"] = _OF_TOWER.get(kind, kind)
    if inner["model_type"] not in _OF_TOWER.values():
        raise ConfigError(
            f"mm_vision_tower has the model_type {kind!r}; allowed: {', '.join(_OF_TOWER)}"
        )
    from transformers import CONFIG_MAPPING  # late: imports torch

    full = CONFIG_MAPPING[inner["model_type"]].from_dict(inner).to_dict()
    return {**full, "vision_use_head": False} if "siglip" in inner["model_type"] else full


def _canvases(pinpoints: Any, tile: int) -> list[list[int]]:
    """(height, width) of every allowed canvas. Published as (width, height) in pixels, or "(1x1),...,(6x6)" in tiles."""
    if isinstance(pinpoints, str):
        corners = re.findall(r"\(?(\d+)x(\d+)\)?", pinpoints)
        if len(corners) == 2:
            (a, b), (c, d) = ((int(x), int(y)) for x, y in corners)
            across, down = range(a, c + 1), range(b, d + 1)
            return [[y * tile, x * tile] for x in across for y in down]
        numbers = [int(text) for text in re.findall(r"\d+", pinpoints)]
        pinpoints = list(zip(numbers[::2], numbers[1::2], strict=False))
    if not isinstance(pinpoints, Sequence) or not pinpoints:
        raise ConfigError(f"image_grid_pinpoints={pinpoints!r} is no list of sizes")
    return [[int(height), int(width)] for width, height in pinpoints]
