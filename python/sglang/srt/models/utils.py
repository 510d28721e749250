"""Helpers that model files import: weight renaming, per-head norms, and small index arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

V = TypeVar("V")


@dataclass
class WeightsMapper:
    """Renames checkpoint tensors. The longest matching substring is replaced, then the longest prefix, then
    the longest suffix, each once; a replacement of None drops the tensor."""

    orig_to_new_substr: Mapping[str, str | None] = field(default_factory=dict)
    orig_to_new_prefix: Mapping[str, str | None] = field(default_factory=dict)
    orig_to_new_suffix: Mapping[str, str | None] = field(default_factory=dict)

    def apply(self, weights: Iterable[tuple[str, V]]) -> Iterator[tuple[str, V]]:
        """Renamed pairs, dropped ones left out."""
        for name, value in weights:
            new_name = self._map_name(name)
            if new_name is not None:
                yield new_name, value

    def apply_list(self, values: list[str]) -> list[str]:
        return [name for name, _ in self.apply((value, None) for value in values)]

    def apply_dict(self, values: dict[str, V]) -> dict[str, V]:
        return dict(self.apply(values.items()))

    def _map_name(self, name: str) -> str | None:
        key = _longest(k for k in self.orig_to_new_substr if k in name)
        if key is not None:
            new = self.orig_to_new_substr[key]
            if new is None:
                return None
            name = name.replace(key, new, 1)
        key = _longest(k for k in self.orig_to_new_prefix if name.startswith(k))
        if key is not None:
            new = self.orig_to_new_prefix[key]
            if new is None:
                return None
            name = new + name[len(key) :]
        key = _longest(k for k in self.orig_to_new_suffix if name.endswith(k))
        if key is not None:
            new = self.orig_to_new_suffix[key]
            if new is None:
                return None
            name = name[: len(name) - len(key)] + new
        return name


def apply_qk_norm(
    q: torch.Tensor,
    k: torch.Tensor,
    q_norm: Any,
    k_norm: Any,
    head_dim: int,
    alt_stream: Any = None,
    allow_inplace: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm every head of q `[T, H * d]` and k `[T, K * d]` over its `head_dim` channels; shapes are kept."""
    q_by_head = q_norm(q.reshape(-1, head_dim))
    k_by_head = k_norm(k.reshape(-1, head_dim))
    return q_by_head.view(q.shape), k_by_head.view(k.shape)


def enable_fused_set_kv_buffer(forward_batch: Any) -> bool:
    """Whether rope may write K and V to the pool itself. It may not: `RadixAttention` writes them."""
    return False


def create_fused_set_kv_buffer_arg(value: torch.Tensor, layer: Any, forward_batch: Any) -> None:
    """The argument for rope when `enable_fused_set_kv_buffer` says yes, which it does not."""
    return None


def permute_inv(perm: torch.Tensor) -> torch.Tensor:
    """The inverse of a permutation `[n]`: `perm[inverse] == arange(n)`."""
    inverse = torch.empty_like(perm)
    inverse[perm] = torch.arange(perm.numel(), device=perm.device, dtype=perm.dtype)
    return inverse


def compute_cu_seqlens_from_grid_numpy(grid_thw: torch.Tensor) -> torch.Tensor:
    """Prefix sums of patches per frame, int32 `[sum(t) + 1]`, of image grids `[n, 3]` (t, h, w; on the host)."""
    grid = grid_thw.numpy()
    per_frame = np.repeat(grid[:, 1] * grid[:, 2], grid[:, 0])
    return torch.from_numpy(np.concatenate([[0], np.cumsum(per_frame)]).astype(np.int32))


class RotaryPosMixin:
    """Rotary positions of an image's patches, in the order in which merged patches are stored."""

    @staticmethod
    def rot_pos_ids(h: int, w: int, spatial_merge_size: int) -> torch.Tensor:
        """Row and column of every patch, int64 `[h * w, 2]`, merge blocks of `spatial_merge_size`^2 together."""
        m = spatial_merge_size
        grid = np.stack(
            np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), axis=-1
        )  # [h, w, 2]
        blocks = grid.reshape(h // m, m, w // m, m, 2).transpose(0, 2, 1, 3, 4)
        return torch.from_numpy(np.ascontiguousarray(blocks.reshape(h * w, 2)))


def _longest(keys: Iterable[str]) -> str | None:
    return max(keys, key=len, default=None)
