"""Rotary positions with three axes (time, height, width), as in Qwen2-VL and its successors.

Every frequency belongs to one axis and turns with that axis' position. For text the three positions
are equal, and this is the ordinary embedding.
"""

from __future__ import annotations

from typing import Any

import torch

from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
from sglang.srt.layers.rotary_embedding.mrope_index import get_rope_index


class MRotaryEmbedding(RotaryEmbedding):
    """`mrope_section` counts the frequencies of each axis and adds up to r / 2.

    Frequencies are laid out axis after axis, or, with `mrope_interleaved`, as t h w t h w ... until
    the sections of height and width are used up, the rest being time.
    """

    def __init__(
        self,
        head_size: int,
        rotary_dim: int,
        max_position_embeddings: int,
        base: float,
        is_neox_style: bool,
        cos_sin_cache: torch.Tensor,
        mrope_section: list[int],
        mrope_interleaved: bool = False,
    ) -> None:
        super().__init__(
            head_size, rotary_dim, max_position_embeddings, base, is_neox_style, cos_sin_cache
        )
        half = rotary_dim // 2
        if len(mrope_section) != 3 or sum(mrope_section) != half:
            raise ValueError(
                f"mrope_section={mrope_section} is invalid; it must be three numbers that add up to "
                f"{half}, half of the rotated dimensions"
            )
        self.mrope_section = list(mrope_section)
        self.mrope_interleaved = mrope_interleaved
        axes = _interleaved_axes if mrope_interleaved else _consecutive_axes
        axis = torch.tensor(axes(self.mrope_section) * 2)  # cosine half, sine half
        self._axis_of_column: torch.Tensor
        self.register_buffer("_axis_of_column", axis, persistent=False)

    def forward_native(
        self,
        positions: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor | None,
        fused_set_kv_buffer_arg: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """positions [T] (text) or [3, T] int64; otherwise as RotaryEmbedding."""
        if positions.dim() == 1:
            return super().forward_native(
                positions, query, key, fused_set_kv_buffer_arg=fused_set_kv_buffer_arg
            )
        if fused_set_kv_buffer_arg is not None:
            raise ValueError(
                "fused_set_kv_buffer_arg is not supported; let RadixAttention write k, v"
            )
        return self.rotate(self._turned_rows(positions), query, key)

    def table_of(
        self, positions: torch.Tensor, forward_batch: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As RotaryEmbedding, also for positions [3, T].

        Then the table has one row for each token of the step, token after token. It is made for
        the first layer and kept in `forward_batch.rope_tables` for the others.
        """
        if positions.dim() == 1:
            return super().table_of(positions, forward_batch)
        kept = forward_batch.rope_tables.get(self)
        if kept is None or kept[0] is not positions:
            own_rows = torch.arange(positions.shape[1], device=positions.device)
            kept = (positions, self._turned_rows(positions), own_rows)
            forward_batch.rope_tables[self] = kept
        _, table, rows = kept
        return table, rows

    def _turned_rows(self, positions: torch.Tensor) -> torch.Tensor:
        """Cosines and sines [T, r] of positions [3, T]: each column those of its axis."""
        rows = positions.index_select(0, self._axis_of_column)  # [r, T]
        return self.cos_sin_cache.gather(0, rows.t())

    get_rope_index = staticmethod(get_rope_index)


def _consecutive_axes(section: list[int]) -> list[int]:
    return [axis for axis, count in enumerate(section) for _ in range(count)]


def _interleaved_axes(section: list[int]) -> list[int]:
    if 3 * section[1] > sum(section) + 1 or 3 * section[2] > sum(section):
        raise ValueError(
            f"mrope_section={section} cannot be interleaved: height and width may have every third of "
            f"{sum(section)} frequencies"
        )
    axes = [0] * sum(section)
    for axis in (1, 2):
        for column in range(axis, 3 * section[axis], 3):
            axes[column] = axis
    return axes
