"""Pictures of any shape as a grid of tiles around one small view, and cutting away what was padded (LLaVA-NeXT).

A picture is scaled into the best of several allowed canvases and padded there; canvases are multiples of the tower's input size.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence

import torch


def select_best_resolution(
    original_size: tuple[int, int], possible_resolutions: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """The canvas (width, height) that keeps most of the picture's pixels, and of those the one with the least padding."""
    width, height = original_size

    def fit(canvas: tuple[int, int]) -> tuple[int, int]:
        scale = min(canvas[0] / width, canvas[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - canvas[0] * canvas[1]

    return max(possible_resolutions, key=fit)


def get_anyres_image_grid_shape(
    image_size: tuple[int, int], grid_pinpoints: str | Sequence[tuple[int, int]], patch_size: int
) -> tuple[int, int]:
    """Tiles across and down for a picture (width, height). `patch_size`: pixels of a tile's side.

    `grid_pinpoints`: the allowed canvases in pixels, or such a list as text. Raises ValueError for text that is no list.
    """
    canvases = grid_pinpoints
    if isinstance(canvases, str):
        try:
            canvases = ast.literal_eval(canvases)
        except (SyntaxError, ValueError) as error:
            raise ValueError(
                f"image_grid_pinpoints={grid_pinpoints!r} is no list of sizes"
            ) from error
    pairs = [(int(width), int(height)) for width, height in canvases]
    width, height = select_best_resolution(image_size, pairs)
    return width // patch_size, height // patch_size


def unpad_image_shape(
    current_height: int, current_width: int, original_size: tuple[int, int]
) -> tuple[int, int]:
    """Height and width that are left of a padded picture whose original size was (width, height)."""
    width, height = original_size
    # Rounded first: 3 * (8 / 3) is not below 8.
    if width / height > current_width / current_height:
        new_height = int(round(height * (current_width / width), 7))
        return current_height - 2 * ((current_height - new_height) // 2), current_width
    new_width = int(round(width * (current_height / height), 7))
    return current_height, current_width - 2 * ((current_width - new_width) // 2)


def limited_shape(height: int, width: int, most: float) -> tuple[int, int]:
    """A shape of the same proportions with about `most` places, where there are many more (LLaVA-OneVision)."""
    ratio = math.sqrt(height * width / most)
    return (int(height // ratio), int(width // ratio)) if ratio > 1.1 else (height, width)


def unpad_image(tensor: torch.Tensor, original_size: tuple[int, int]) -> torch.Tensor:
    """`tensor` [C, height, width] of a padded picture without the padding, the same on both sides."""
    _, current_height, current_width = tensor.shape
    height, width = unpad_image_shape(current_height, current_width, original_size)
    top, left = (current_height - height) // 2, (current_width - width) // 2
    return tensor[:, top : top + height, left : left + width]
