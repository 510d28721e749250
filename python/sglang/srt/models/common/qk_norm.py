"""Norms of q and k whose weights belong to heads, so that they are cut over the ranks as the heads are.

A norm over the head dim with one weight for all heads needs none of this: `GQAttention(q_norm=RMSNorm(head_dim))`.
Legend: T tokens, N heads of q or of k on this rank, d head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from sglang.srt.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from sglang.srt.layers.parameter import mark_filled
from sglang.srt.layers.weight_placement import copy_into, slice_for_rank
from sglang.srt.utils import set_weight_attrs


class _HeadNorm(nn.Module):
    """Holds the weight `[N, d]` of this rank's heads; with fewer heads than ranks a head is on several."""

    def __init__(self, num_heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.tp_size = get_tensor_model_parallel_world_size()
        self.num_parts = min(self.tp_size, num_heads)
        self.part = get_tensor_model_parallel_rank() * self.num_parts // self.tp_size
        self.num_heads = num_heads // self.num_parts
        self.head_dim = head_dim
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(self.num_heads, head_dim), requires_grad=False)
        set_weight_attrs(self.weight, {"weight_loader": self.weight_loader})

    def weight_loader(self, param: nn.Parameter, loaded_weight: torch.Tensor) -> None:
        """Copy this rank's heads out of a tensor `[all heads, d]` or `[all heads * d]`."""
        name = f"{type(self).__name__}.weight"
        heads = loaded_weight.reshape(-1, self.head_dim)
        part = slice_for_rank(heads, 0, self.num_heads, self.part, self.num_parts, name)
        copy_into(param.data, part, name)
        mark_filled(param)

    def extra_repr(self) -> str:
        return f"heads={self.num_heads}, head_dim={self.head_dim}, eps={self.eps}"


class ProjectionRMSNorm(_HeadNorm):
    """RMS norm over the whole width of a projection, all heads of all ranks together."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [T, N * d] -> [T, N * d]
        wide = x.float()
        mean_square = wide.square().mean(dim=-1, keepdim=True)
        if self.tp_size > 1:
            # Every head is on equally many ranks, so the mean over ranks is the mean over heads.
            mean_square = tensor_model_parallel_all_reduce(mean_square) / self.tp_size
        normed = wide * torch.rsqrt(mean_square + self.eps)
        return (normed * self.weight.flatten()).to(x.dtype)


class PerHeadLayerNorm(_HeadNorm):
    """Layer norm over the head dim, with a weight for each head and no bias."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [T, N * d] -> [T, N * d]
        heads = x.float().unflatten(-1, (self.num_heads, self.head_dim))
        normed = F.layer_norm(heads, (self.head_dim,), eps=self.eps)
        return (normed * self.weight.float()).flatten(-2).to(x.dtype)
