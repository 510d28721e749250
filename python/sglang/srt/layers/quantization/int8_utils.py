"""Weights of eight-bit integers as ordinary numbers."""

from __future__ import annotations

import torch

from sglang.srt.layers.quantization.block_scales import scale_blocks


def block_dequant(x_q: torch.Tensor, x_s: torch.Tensor, block_size: list[int]) -> torch.Tensor:
    """`x_q` int8 [M, N] times the scale of each block, `x_s` [ceil(M/bm), ceil(N/bn)]; float32 [M, N]."""
    return scale_blocks(x_q, x_s, block_size, torch.float32)
