"""From an image to patches, as transformers' image processor for Qwen2-VL does it with Pillow.

Pictures are resized to 84 x 112 up to 112 x 112 pixels or about as many: 12 to 16 tokens each.
Patches stay 8-bit until `normalise`, so that few bytes travel from the workers to the model.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from PIL import Image

PATCH, MERGE, TEMPORAL = 14, 2, 2
MIN_PIXELS, MAX_PIXELS = 84 * 112, 112 * 112
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PATCH_VALUES = 3 * PATCH * PATCH
_BLOCK = PATCH * MERGE


def target_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) that an image is resized to: multiples of 28 within the pixel budget."""
    high, wide = round(height / _BLOCK), round(width / _BLOCK)
    pixels = high * wide * _BLOCK**2
    if pixels > MAX_PIXELS:
        shrink = math.sqrt(height * width / MAX_PIXELS)
        high = max(1, math.floor(height / shrink / _BLOCK))
        wide = max(1, math.floor(width / shrink / _BLOCK))
    elif pixels < MIN_PIXELS:
        grow = math.sqrt(MIN_PIXELS / (height * width))
        high, wide = math.ceil(height * grow / _BLOCK), math.ceil(width * grow / _BLOCK)
    return wide * _BLOCK, high * _BLOCK


def to_patches(image: Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
    """uint8 [rows * columns, 588] and the grid (rows, columns) of patches.

    Patches come in the order of the tower: the four that become one token stand together.
    """
    size = target_size(*image.size)
    image = image.convert("RGB")
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    rows, columns = size[1] // PATCH, size[0] // PATCH
    blocks = np.asarray(image).reshape(
        rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3
    )
    ordered = blocks.transpose(0, 3, 1, 4, 6, 2, 5)  # block row, block, 2, 2, channel, y, x
    return np.ascontiguousarray(ordered).reshape(rows * columns, PATCH_VALUES), (rows, columns)


def normalise(patches: torch.Tensor) -> torch.Tensor:
    """float32 [..., 1176] of uint8 [..., 588]: what the tower takes; both frames are the image."""
    shape = patches.shape[:-1]
    values = patches.view(*shape, 3, 1, PATCH * PATCH).float() / 255
    mean, std = _statistics(patches.device)
    both = ((values - mean) / std).expand(*shape, 3, TEMPORAL, PATCH * PATCH)
    return both.reshape(*shape, 3 * TEMPORAL * PATCH * PATCH)


@functools.cache
def _statistics(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation [3, 1, 1]; sent to the device once, as a recorded step cannot."""
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
    return mean, std
