"""8-bit floating point weights with scales per block, row or tensor: turning one kind into another.

Each takes and returns values x and scales s with `weight = x * s`.
"""

from __future__ import annotations

import torch

from sglang.srt.utils.common import ceil_div

fp8_dtype = torch.float8_e4m3fn
_FP8_MAX = torch.finfo(fp8_dtype).max


def scale_blocks(
    x_q: torch.Tensor, x_s: torch.Tensor, block_size: list[int], dtype: torch.dtype
) -> torch.Tensor:
    """`x_q` [M, N] (or [E, M, N]) times the scale of each block, in `dtype`.

    Raises ValueError when the scales are not [ceil(M/bm), ceil(N/bn)].
    """
    rows, columns = x_q.shape[-2:]
    block_rows, block_columns = block_size
    expected = (ceil_div(rows, block_rows), ceil_div(columns, block_columns))
    if tuple(x_s.shape[-2:]) != expected:
        raise ValueError(
            f"scales of blocks {block_size} of a weight {list(x_q.shape)} must be {list(expected)}; they are {list(x_s.shape)}"
        )
    scales = x_s.float().repeat_interleave(block_rows, dim=-2)[..., :rows, :]
    scales = scales.repeat_interleave(block_columns, dim=-1)[..., :columns]
    return (x_q.float() * scales).to(dtype)


def block_quant_dequant(
    x_q_block: torch.Tensor, x_s: torch.Tensor, block_size: list[int], dtype: torch.dtype
) -> torch.Tensor:
    """Block-scaled 8-bit weights [M, N] as ordinary numbers of `dtype`."""
    return scale_blocks(x_q_block, x_s, block_size, dtype)


def block_quant_to_tensor_quant(
    x_q_block: torch.Tensor, x_s: torch.Tensor, block_size: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same weight with one scale: 8-bit values [M, N] and a scalar."""
    return _quantize_whole(scale_blocks(x_q_block, x_s, block_size, torch.float32))


def channel_quant_to_tensor_quant(
    x_q_channel: torch.Tensor, x_s: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same weight with one scale instead of one per row, [M] or [M, 1]."""
    return _quantize_whole(x_q_channel.float() * x_s.float().view(-1, 1))


def normalize_e4m3fn_to_e4m3fnuz(
    weight: torch.Tensor, weight_scale: torch.Tensor, input_scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The same bits read in AMD's format, where they mean half as much, and scales twice as large.

    The bits of minus zero mean NaN there and become zero.
    """
    if weight.dtype != torch.float8_e4m3fn:
        raise ValueError(f"the weight must be torch.float8_e4m3fn, not {weight.dtype}")
    bits = weight.view(torch.int8)
    bits = torch.where(bits == -128, torch.zeros_like(bits), bits)
    doubled = None if input_scale is None else input_scale * 2
    return bits.view(torch.float8_e4m3fnuz), weight_scale * 2, doubled


def _quantize_whole(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    largest = weight.abs().max().clamp(min=1e-12)
    scale = largest / _FP8_MAX
    return (weight / scale).clamp(-_FP8_MAX, _FP8_MAX).to(fp8_dtype), scale
