"""Triton kernels of layers, each the same function as a layer's `forward_native`, in one launch.

Layers import a kernel inside `forward_cuda`, so that nothing here is needed where there is no Triton.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# The widest row that one program norms: it is held in registers.
MAX_NORM_WIDTH = 16384
# The longest row whose product with a weight is unrolled.
MAX_ROW_WIDTH = 32768
# The most experts that one program routes over: their scores are held in registers.
MAX_ROUTED_EXPERTS = 1024


@functools.cache
def has_triton() -> bool:
    """Whether the package is installed; layers fall back to plain torch without it."""
    return importlib.util.find_spec("triton") is not None


def next_power_of_2(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def suits_one_row_kernel(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Is it one 16-bit row times a weight whose rows lie in one piece, on a GPU?"""
    return (
        x.is_cuda
        and x.dim() == 2
        and x.shape[0] == 1
        and x.element_size() == 2
        and x.dtype == weight.dtype
        and weight.dim() == 2
        and weight.stride(1) == 1
        and x.stride(1) == 1
        and weight.shape[1] <= MAX_ROW_WIDTH
        and has_triton()
    )
