"""Vision towers with their images dealt to the tensor-parallel ranks.

Compatibility: with one rank the tower is simply called; dealing images to several ranks is not implemented.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from sglang.srt.distributed import get_tensor_model_parallel_world_size
from sglang.srt.multimodal.anyres import (
    get_anyres_image_grid_shape,
    select_best_resolution,
    unpad_image,
    unpad_image_shape,
)
from sglang.srt.utils.errors import ConfigError

__all__ = [
    "get_anyres_image_grid_shape",
    "run_dp_sharded_mrope_vision_model",
    "run_dp_sharded_vision_model",
    "select_best_resolution",
    "unpad_image",
    "unpad_image_shape",
]


def run_dp_sharded_mrope_vision_model(
    vision_model: torch.nn.Module,
    pixel_values: torch.Tensor,
    grid_thw_list: list[list[int]],
    *,
    rope_type: Literal["rope_3d", "rope_2d"],
) -> Any:
    """`vision_model(pixel_values, grid)` for all images. Raises ConfigError with several ranks."""
    if rope_type not in ("rope_3d", "rope_2d"):
        raise ConfigError(f"rope_type={rope_type!r} is not supported; allowed: rope_3d, rope_2d")
    _refuse_several_ranks()
    return vision_model(pixel_values, torch.tensor(grid_thw_list))


def run_dp_sharded_vision_model(image_input: torch.Tensor, vision_model: torch.nn.Module) -> Any:
    """`vision_model(image_input)`. Raises ConfigError with several ranks."""
    _refuse_several_ranks()
    return vision_model(image_input)


def _refuse_several_ranks() -> None:
    size = get_tensor_model_parallel_world_size()
    if size > 1:
        raise ConfigError(
            f"a data-parallel vision tower with tp_size={size} is not supported; leave out --mm-enable-dp-encoder"
        )
