"""Helpers of attention layers under the path that model files import."""

from __future__ import annotations

import torch


def concat_and_cast_mha_k_triton(
    k: torch.Tensor,  # [T, H, nope + rope], filled
    k_nope: torch.Tensor,  # [T, H, nope]
    k_rope: torch.Tensor,  # [T, 1, rope], the same for all heads
) -> None:
    """Write both parts of the keys into `k`, in its dtype."""
    nope = k_nope.shape[-1]
    k[..., :nope].copy_(k_nope)
    k[..., nope:].copy_(k_rope)
