"""Arithmetic of splitting sizes and tensors over ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sglang.srt.utils.errors import ConfigError
from sglang.srt.utils.layer_list import get_pp_indices

__all__ = ["divide", "ensure_divisibility", "get_pp_indices", "split_tensor_along_last_dim"]


def ensure_divisibility(numerator: int, denominator: int) -> None:
    """Raise ConfigError unless `numerator` is a multiple of `denominator`."""
    if numerator % denominator != 0:
        raise ConfigError(
            f"{numerator} is not divisible by {denominator}; choose a parallel size that divides it"
        )


def divide(numerator: int, denominator: int) -> int:
    """Exact quotient. Raises ConfigError when there is a remainder."""
    ensure_divisibility(numerator, denominator)
    return numerator // denominator


def split_tensor_along_last_dim(
    tensor: torch.Tensor, num_partitions: int, contiguous_split_chunks: bool = False
) -> Sequence[torch.Tensor]:
    """Equal parts of the last dimension, as views unless contiguous copies are asked for."""
    parts = tensor.split(divide(tensor.shape[-1], num_partitions), dim=-1)
    if contiguous_split_chunks:
        return tuple(part.contiguous() for part in parts)
    return parts
