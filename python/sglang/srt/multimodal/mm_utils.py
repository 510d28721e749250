"""Vision towers with their images dealt to the tensor-parallel ranks, for models that ask for it themselves.

With one rank the tower is simply called.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch

from sglang.srt.distributed import each_rank_alone, get_tensor_model_parallel_world_size
from sglang.srt.multimodal.anyres import (
    get_anyres_image_grid_shape,
    select_best_resolution,
    unpad_image,
    unpad_image_shape,
)
from sglang.srt.multimodal.dealing import compute_dealt
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
    """`vision_model(pixel_values, grid)` for all images, dealt to the ranks. `pixel_values` [patches, ...], in the order of the grids.

    The tower must be whole on every rank; `spatial_merge_size` is the side of the patches that it merges into a row. Raises ConfigError for another `rope_type`.
    """
    if rope_type not in ("rope_3d", "rope_2d"):
        raise ConfigError(f"rope_type={rope_type!r} is not supported; allowed: rope_3d, rope_2d")
    grids = torch.tensor(grid_thw_list)
    if get_tensor_model_parallel_world_size() == 1 or len(grid_thw_list) < 2:
        with each_rank_alone():
            return vision_model(pixel_values, grids)
    patches = [math.prod(grid) for grid in grid_thw_list]
    pieces = pixel_values.split(patches)
    merged = _patches_per_row(vision_model)

    def compute(indices: list[int]) -> torch.Tensor:
        return vision_model(torch.cat([pieces[i] for i in indices]), grids[indices])

    return compute_dealt(compute, [count // merged for count in patches])


def run_dp_sharded_vision_model(image_input: torch.Tensor, vision_model: torch.nn.Module) -> Any:
    """`vision_model(image_input)` [n, ...] for images [n, ...], dealt to the ranks. The tower must be whole on every rank."""
    if len(image_input) == 0:
        return vision_model(image_input)
    return compute_dealt(lambda indices: vision_model(image_input[indices]), [1] * len(image_input))


def _patches_per_row(vision_model: Any) -> int:
    """How many patches the tower merges into one row."""
    return vision_model.spatial_merge_size**2
