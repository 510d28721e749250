"""Inverse frequencies of every kind of rotary embedding, and tables of cosines and sines made of
them.

All in float32 on the host, whatever the default dtype and device: the tables are exact and move to
the device once. r is the number of rotated dimensions; frequencies are [r / 2].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def plain(base: float, rotary_dim: int) -> torch.Tensor:
    """`base^(-2i / r)`."""
    return 1.0 / (base ** _exponents(rotary_dim))


def linear(base: float, rotary_dim: int, factor: float) -> torch.Tensor:
    """Positions stretched by `factor`."""
    return plain(base, rotary_dim) / factor


def dynamic_ntk(
    base: float, rotary_dim: int, factor: float, max_position: int, seq_len: int
) -> torch.Tensor:
    """The base grows with the length once it exceeds `max_position`."""
    ratio = factor * max(seq_len, max_position) / max_position - (factor - 1)
    return plain(base * ratio ** (rotary_dim / (rotary_dim - 2)), rotary_dim)


def dynamic_alpha(base: float, rotary_dim: int, alpha: float) -> torch.Tensor:
    """A base scaled once, by `alpha^(r / (r - 2))`."""
    return plain(base * alpha ** (rotary_dim / (rotary_dim - 2)), rotary_dim)


def llama3(
    base: float,
    rotary_dim: int,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position: int,
) -> torch.Tensor:
    """Long waves are stretched by `factor`, short ones kept, those between blended."""
    inv_freq = plain(base, rotary_dim)
    # Turns that a wave makes within the original context.
    turns = original_max_position * inv_freq / (2 * math.pi)
    keep = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
    keep = keep.clamp(0.0, 1.0)
    return (1 - keep) * inv_freq / factor + keep * inv_freq


def yarn(
    base: float,
    rotary_dim: int,
    factor: float,
    original_max_position: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    extrapolation_factor: float = 1.0,
    truncate: bool = True,
) -> torch.Tensor:
    """YaRN (arXiv 2309.00071): dimensions that turn often are kept, slow ones are stretched."""
    low = _correction_dim(beta_fast, base, rotary_dim, original_max_position)
    high = _correction_dim(beta_slow, base, rotary_dim, original_max_position)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    width = high - low if high != low else 0.001
    index = torch.arange(rotary_dim // 2, dtype=torch.float32, device="cpu")
    keep = (1 - ((index - low) / width).clamp(0.0, 1.0)) * extrapolation_factor
    inv_freq = plain(base, rotary_dim)
    return (1 - keep) * inv_freq / factor + keep * inv_freq


def longrope(base: float, rotary_dim: int, factors: Sequence[float]) -> torch.Tensor:
    """LongRoPE (arXiv 2402.13753): one stretching factor per frequency."""
    if len(factors) != rotary_dim // 2:
        raise ValueError(
            f"longrope needs {rotary_dim // 2} factors for {rotary_dim} rotated dimensions, "
            f"not {len(factors)}"
        )
    scale = torch.tensor(factors, dtype=torch.float32, device="cpu")
    return 1.0 / (scale * base ** _exponents(rotary_dim))


def yarn_get_mscale(scale: float = 1.0, mscale: float = 1.0) -> float:
    """Growth of attention magnitudes with the context: `0.1 mscale ln(scale) + 1`."""
    return 1.0 if scale <= 1 else 0.1 * mscale * math.log(scale) + 1.0


def longrope_attention_factor(scale: float, original_max_position: int) -> float:
    """Factor of cosines and sines when the context is `scale` times the original one."""
    if scale <= 1.0:
        return 1.0
    return math.sqrt(1 + math.log(scale) / math.log(original_max_position))


def cos_sin_table(
    inv_freq: torch.Tensor, length: int, attention_factor: float = 1.0
) -> torch.Tensor:
    """[length, r]: the cosines of a position, then its sines; float32 on the host."""
    positions = torch.arange(length, dtype=torch.float32, device="cpu")
    angles = torch.outer(positions, inv_freq)
    table = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return table if attention_factor == 1.0 else table.mul_(attention_factor)


def _exponents(rotary_dim: int) -> torch.Tensor:
    return torch.arange(0, rotary_dim, 2, device="cpu").float() / rotary_dim


def _correction_dim(
    turns: float, base: float, rotary_dim: int, original_max_position: int
) -> float:
    """The (fractional) dimension that makes so many turns within the original context."""
    wavelength = original_max_position / (turns * 2 * math.pi)
    return rotary_dim * math.log(wavelength) / (2 * math.log(base))
