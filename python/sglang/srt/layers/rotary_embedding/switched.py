"""Two tables, one for contexts up to a limit and one for longer ones (LongRoPE, dynamic NTK).

Both published forms choose by the length of the sequence, for all of its tokens at once; keys
cached under one table do not fit queries under the other. A server that knows its context length
therefore fixes the choice once (`fix_context_length`). Until then the longest position of the call
decides, for the whole call.
"""

from __future__ import annotations

import torch

from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding


class SwitchedRotaryEmbedding(RotaryEmbedding):
    """`cos_sin_cache` is [short rows 0 .. limit-1 | long rows 0 .. max-1]."""

    def __init__(
        self,
        head_size: int,
        rotary_dim: int,
        max_position_embeddings: int,
        base: float,
        is_neox_style: bool,
        short_table: torch.Tensor,
        long_table: torch.Tensor,
    ) -> None:
        table = torch.cat([short_table, long_table])
        super().__init__(head_size, rotary_dim, max_position_embeddings, base, is_neox_style, table)
        self.limit = len(short_table)
        self.use_long: bool | None = None

    def fix_context_length(self, context_length: int) -> None:
        """Use the short table for good if no sequence can exceed its limit, else the long one."""
        self.use_long = context_length > self.limit

    def _rows(self, positions: torch.Tensor) -> torch.Tensor:
        if self.use_long is None:
            if positions.numel() == 0:
                return self.cos_sin_cache[:0]
            # Stays on the device: no synchronisation.
            is_long = (positions.max() >= self.limit).to(positions.dtype)
            positions = positions + is_long * self.limit
        elif self.use_long:
            positions = positions + self.limit
        return self.cos_sin_cache.index_select(0, positions)
