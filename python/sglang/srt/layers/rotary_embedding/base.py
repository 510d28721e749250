"""The rotary embedding of one table: rotates the first r dimensions of every head of q and k.

    y1 = x1 cos - x2 sin;  y2 = x2 cos + x1 sin

Neox style pairs dimension i with i + r/2, GPT-J style pairs 2i with 2i + 1. Legend: T tokens, N
heads of q and k together, d head dim.
"""

from __future__ import annotations

from typing import Any

import torch

from sglang.srt.layers.rotary_embedding.frequencies import cos_sin_table
from sglang.srt.layers.utils import MultiPlatformOp


class RotaryEmbedding(MultiPlatformOp):
    """Rotation by a table `cos_sin_cache` [rows, r] float32, cosines in its first half.

    Modules are shared between layers. The results may or may not share memory with the inputs; use
    the results.
    """

    def __init__(
        self,
        head_size: int,
        rotary_dim: int,
        max_position_embeddings: int,
        base: float,
        is_neox_style: bool,
        cos_sin_cache: torch.Tensor,
    ) -> None:
        super().__init__()
        if rotary_dim % 2 != 0 or not 0 < rotary_dim <= head_size:
            raise ValueError(
                f"rotary_dim={rotary_dim} is invalid; it must be even and within 2 .. {head_size} "
                "(the head size)"
            )
        self.head_size = head_size
        self.rotary_dim = rotary_dim
        self.max_position_embeddings = max_position_embeddings
        self.base = base
        self.is_neox_style = is_neox_style
        self.cos_sin_cache: torch.Tensor
        table = cos_sin_cache.to(torch.get_default_device())
        self.register_buffer("cos_sin_cache", table, persistent=False)

    def forward_native(
        self,
        positions: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor | None,
        offsets: torch.Tensor | None = None,
        fused_set_kv_buffer_arg: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """positions [T] int64; query [T, H * d] and key [T, K * d], or any shape that flattens to
        them.

        `offsets` [T] are added to the positions. Writing K/V to the cache in the same step is not
        supported.
        """
        if fused_set_kv_buffer_arg is not None:
            raise ValueError(
                "fused_set_kv_buffer_arg is not supported; let RadixAttention write k, v"
            )
        if offsets is not None:
            positions = positions + offsets
        return self.rotate(self._rows(positions.flatten()), query, key)

    def _rows(self, positions: torch.Tensor) -> torch.Tensor:
        """The table rows [T, r] of the tokens."""
        return self.cos_sin_cache.index_select(0, positions)

    def table_of(
        self, positions: torch.Tensor, forward_batch: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A contiguous table [rows, r] of cosines and sines, and the row in it of every token
        [T] int64: the form in which a kernel takes a rotation.
        """
        return self.cos_sin_cache, positions

    def rotate(
        self, cos_sin: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rotate by the given rows [T, r]. q and k go through the arithmetic together."""
        q = query.flatten(1).unflatten(-1, (-1, self.head_size))
        if key is None:
            return self._rotate_heads(q, cos_sin, fresh=False).reshape(query.shape), None
        k = key.flatten(1).unflatten(-1, (-1, self.head_size))
        heads = self._rotate_heads(torch.cat([q, k], dim=1), cos_sin, fresh=True)  # [T, N, d]
        num_q = q.shape[1]
        return heads[:, :num_q].reshape(query.shape), heads[:, num_q:].reshape(key.shape)

    def _rotate_heads(self, x: torch.Tensor, cos_sin: torch.Tensor, fresh: bool) -> torch.Tensor:
        """[T, N, d] rotated, in float32 inside. `fresh`: `x` may be overwritten."""
        rotated = apply_rotation(x[..., : self.rotary_dim], cos_sin, self.is_neox_style)
        if self.rotary_dim == self.head_size:
            return rotated.to(x.dtype)
        out = x if fresh else x.clone()
        out[..., : self.rotary_dim] = rotated
        return out

    def get_cos_sin(self, seqlen: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of positions 0 .. seqlen-1, each [seqlen, r / 2]."""
        cos, sin = self.cos_sin_cache[:seqlen].chunk(2, dim=-1)
        return cos, sin

    def extra_repr(self) -> str:
        style = "neox" if self.is_neox_style else "gptj"
        return (
            f"head_size={self.head_size}, rotary_dim={self.rotary_dim}, base={self.base}, {style}"
        )


class LinearScalingRotaryEmbedding(RotaryEmbedding):
    """Several stretching factors, one table after the other.

    `scaling_factor_to_offset` gives the `offsets` value that selects a factor; without offsets the
    first is used.
    """

    def __init__(
        self,
        head_size: int,
        rotary_dim: int,
        max_position_embeddings: int,
        base: float,
        is_neox_style: bool,
        frequencies: dict[float, torch.Tensor],
    ) -> None:
        tables: list[torch.Tensor] = []
        self_offsets: dict[float, int] = {}
        for factor, inv_freq in frequencies.items():
            self_offsets[factor] = sum(len(table) for table in tables)
            tables.append(cos_sin_table(inv_freq, int(max_position_embeddings * factor)))
        super().__init__(
            head_size, rotary_dim, max_position_embeddings, base, is_neox_style, torch.cat(tables)
        )
        self.scaling_factor_to_offset = self_offsets


def apply_rotation(x: torch.Tensor, cos_sin: torch.Tensor, is_neox_style: bool) -> torch.Tensor:
    """Rotate x [T, N, r] by rows [T, r] of a table; a new float32 tensor."""
    # The pair of a rotation becomes an axis of size two, so that cosines broadcast over it.
    half = x.shape[-1] // 2
    pair_axis = -2 if is_neox_style else -1
    pairs = x.unflatten(-1, (2, half) if is_neox_style else (half, 2))
    cos, sin = cos_sin[:, None, :half], cos_sin[:, None, half:]  # [T, 1, r / 2]
    out = pairs * cos.unsqueeze(pair_axis)
    x1, x2 = pairs.unbind(pair_axis)
    y1, y2 = out.unbind(pair_axis)
    y1.addcmul_(x2, sin, value=-1)
    y2.addcmul_(x1, sin)
    return out.flatten(-2)


def apply_rotary_pos_emb(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    unsqueeze_dim: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Neox rotation of q and k [T, heads, d] by cos and sin [T, d] (both halves alike), in
    float32."""
    cos = cos.unsqueeze(unsqueeze_dim).float()
    sin = sin.unsqueeze(unsqueeze_dim).float()
    q32, k32 = q.float(), k.float()
    return (
        (q32 * cos + rotate_half(q32) * sin).to(q.dtype),
        (k32 * cos + rotate_half(k32) * sin).to(k.dtype),
    )


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """[x1 | x2] -> [-x2 | x1] along the last dimension."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([-x2, x1], dim=-1)
