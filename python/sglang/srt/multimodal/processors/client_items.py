"""Media that a client prepared: a processor's output, or rows that go into the model as they are. Dicts with a `format`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sglang.srt.multimodal.inputs import Modality, MultimodalInputFormat
from sglang.srt.utils.errors import RequestError

_MAX_PATCHES = 2**22
# Others that say how many ids a prompt is expanded to: entries of an item, and how much they may be together. A tile stands for hundreds of ids.
_MAX_COUNTS = {
    "num_patches": 2**12,
    "num_tiles": 2**12,
    "num_crops": 2**12,
    "audio_feature_lens": 2**22,
}
_FORMATS = {
    "processor_output": MultimodalInputFormat.PROCESSOR_OUTPUT,
    "precomputed_embedding": MultimodalInputFormat.PRECOMPUTED_EMBEDDING,
}


def is_prepared(item: Any) -> bool:
    """Whether an item is not a medium but what was made of one."""
    return isinstance(item, Mapping)


def validate_mm_data(
    image_data: Sequence[Any] | None = None,
    video_data: Sequence[Any] | None = None,
    audio_data: Sequence[Any] | None = None,
) -> None:
    """Per kind either media, or exactly one dict of a known format. Raises RequestError."""
    for name, data in (("image", image_data), ("video", video_data), ("audio", audio_data)):
        prepared = [item for item in data or () if is_prepared(item)]
        if not prepared:
            continue
        if len(data or ()) != 1:
            raise RequestError(
                f"{name}_data holds prepared data among {len(data or ())} items; give one dict for all of them, or raw media"
            )
        if prepared[0].get("format") not in _FORMATS:
            raise RequestError(
                f"{name}_data has the format {ascii(prepared[0].get('format'))[:60]}; allowed: {', '.join(_FORMATS)}"
            )


def prepared_features(
    item: Mapping[str, Any], modality: Modality, known: Mapping[str, Modality]
) -> dict[str, Any]:
    """The keys of a prepared item that mean something, lists as tensors. Raises RequestError for values that are no numbers.

    Hashes, pad values and offsets are never taken from a client.
    """
    form = _FORMATS[item["format"]]
    features: dict[str, Any] = {"format": form}
    for key, value in item.items():
        if known.get(key) is modality:
            features[key] = _tensor(key, value)
    if form is MultimodalInputFormat.PRECOMPUTED_EMBEDDING:
        rows = _tensor("feature", item.get("feature"))
        if rows.dim() < 2 or not rows.is_floating_point():
            raise RequestError(
                "feature must be a matrix of floating-point numbers, one row per place"
            )
        features = {
            k: v for k, v in features.items() if k not in ("pixel_values", "pixel_values_videos")
        }
        features["precomputed_embeddings"] = rows
    elif len(features) == 1:
        raise RequestError("the processor output holds nothing that this model takes")
    for key, value in features.items():
        if key.endswith(("grid_thw", "grid_hws")):
            _check_grid(key, value)
        elif key in _MAX_COUNTS:
            _check_counts(key, value)
    return features


def _check_grid(name: str, grid: torch.Tensor) -> None:
    """Grids say how many ids a prompt is expanded to, so their sizes are bounded before anything is built from them."""
    is_grid = grid.dim() == 2 and grid.shape[1] in (2, 3) and not grid.is_floating_point()
    if not is_grid or not bool(((grid > 0) & (grid < _MAX_PATCHES)).all()):
        raise RequestError(f"{name} must hold positive whole numbers, one row per item")
    if sum(math.prod(row) for row in grid.tolist()) > _MAX_PATCHES:
        raise RequestError(f"{name} stands for more than {_MAX_PATCHES} patches")


def _check_counts(name: str, counts: torch.Tensor) -> None:
    """As grids."""
    most = _MAX_COUNTS[name]
    is_right = not counts.is_floating_point() and bool(((counts >= 0) & (counts <= most)).all())
    if not is_right or int(counts.sum()) > most:
        raise RequestError(f"{name} must hold whole numbers of at most {most} together")


def _tensor(name: str, value: Any) -> torch.Tensor:
    try:
        tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise RequestError(f"{name} must be an array of numbers with equal rows") from error
    if tensor.is_sparse or tensor.is_complex() or tensor.layout != torch.strided:
        raise RequestError(f"{name} must be a dense array of real numbers")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise RequestError(f"{name} holds numbers that are not finite")
    return tensor.float() if tensor.dtype is torch.float64 else tensor
