"""The media of the requests that hold rows, on one rank: their values for the model, their pad values, their positions.

Legend: T tokens in the step, R rows.
"""

from __future__ import annotations

import numpy as np

from sglang.srt.managers.step_plan import RowMedia, RowWork
from sglang.srt.multimodal.inputs import MultimodalInputs
from sglang.srt.multimodal.transport import unpack


class MediaRows:
    """What batches need to know of media, by row.

    Args:
        num_rows: R.
        has_mrope: the model turns keys by three positions (time, height, width).
    """

    def __init__(self, num_rows: int, has_mrope: bool) -> None:
        self.has_mrope = has_mrope
        self._inputs: dict[int, MultimodalInputs] = {}
        self._padded_ids: dict[int, np.ndarray] = {}  # int64 [prompt length]
        self._positions: dict[int, np.ndarray] = {}  # int64 [3, prompt length]
        # How far positions are behind (or ahead of) the number of tokens, after the media. int64 [R]
        self._deltas = np.zeros(num_rows, np.int64)

    def update(self, media: dict[int, RowMedia | None]) -> None:
        """Take over what a plan says of its rows."""
        for row, found in media.items():
            self._forget(row)
            if found is not None:
                self._set(row, found)

    def overlay(self, works: list[RowWork], token_ids: np.ndarray) -> np.ndarray:
        """Token ids int64 [T] with pad values where media are."""
        if not self._padded_ids:
            return token_ids
        first = 0
        for work in works:
            padded = self._padded_ids.get(work.row)
            if padded is not None and work.token_ids is not None:
                piece = padded[work.start : work.start + work.num_tokens]
                token_ids[first : first + len(piece)] = piece
            first += work.num_tokens
        return token_ids

    def inputs_of(self, works: list[RowWork]) -> list[MultimodalInputs | None] | None:
        """Media of every work of a prefill; None when the step has none. Those of a prompt that ends here are let go."""
        if not self._inputs:
            return None
        found = [
            self._inputs.get(work.row) if work.token_ids is not None else None for work in works
        ]
        for work in works:
            padded = self._padded_ids.get(work.row)
            if padded is not None and work.start + work.num_tokens >= len(padded):
                self._inputs.pop(work.row, None)
        return found if any(inputs is not None for inputs in found) else None

    def mrope_positions(self, works: list[RowWork], positions: np.ndarray) -> np.ndarray:
        """int64 [3, T] from positions int64 [T]. Text has three equal rows."""
        lens = [work.num_tokens for work in works]
        rows = np.repeat(np.fromiter((work.row for work in works), np.int64, len(works)), lens)
        turned = np.tile(positions + self._deltas[rows], (3, 1))
        if not self._positions:
            return turned
        first = 0
        for work in works:
            known = self._positions.get(work.row)
            if known is not None:
                piece = known[:, work.start : work.start + work.num_tokens]
                turned[:, first : first + piece.shape[1]] = piece
            first += work.num_tokens
        return turned

    def _set(self, row: int, media: RowMedia) -> None:
        inputs = MultimodalInputs.from_dict(unpack(media.inputs))
        self._inputs[row] = inputs
        self._padded_ids[row] = np.frombuffer(media.padded_ids, np.int64)
        if not self.has_mrope or inputs.mrope_positions is None:
            return
        positions = inputs.mrope_positions.numpy()
        self._positions[row] = positions
        delta = inputs.mrope_position_delta
        self._deltas[row] = (
            int(positions.max()) + 1 - positions.shape[1] if delta is None else int(delta)
        )

    def _forget(self, row: int) -> None:
        for table in (self._inputs, self._padded_ids, self._positions):
            table.pop(row, None)
        self._deltas[row] = 0
