"""Encoder tokens of the requests that hold rows, on one rank: where their keys are, and which of them a token sees.

The slots of a request's encoder tokens stand at the front of its row in the row table; those of its own tokens follow. Legend: T tokens in
the step, R rows, N encoder tokens that the step writes.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from sglang.srt.managers.step_plan import RowMedia, RowWork

View = tuple[int, int, int, int]  # see `ForwardBatch.encoder_views`


@dataclasses.dataclass(frozen=True)
class EncoderStep:
    """What a step needs to know; lists have an entry per request. Names as in `ForwardBatch`."""

    lens: list[int]
    cached: list[bool]
    views: list[list[View]]
    new_slots: npt.NDArray[np.int64]  # [N]
    visible: npt.NDArray[np.int64]  # 0 or 1, [T]


class EncoderRows:
    """By row. `lens`: encoder tokens of each row's request, int64 [R]."""

    def __init__(self, num_rows: int) -> None:
        self.lens = np.zeros(num_rows, np.int64)
        self._views: dict[int, list[tuple[int, int, int]]] = {}
        self._unwritten: dict[int, npt.NDArray[np.int64]] = {}  # slots whose keys nobody has made

    def update(self, media: dict[int, RowMedia | None]) -> dict[int, npt.NDArray[np.int32]]:
        """Take over what a plan says of its rows; returns the slots that their rows of the table begin with."""
        found = {}
        for row, one in media.items():
            self.lens[row] = 0
            self._views.pop(row, None)
            self._unwritten.pop(row, None)
            if one is None or not one.encoder_slots:
                continue
            slots = np.frombuffer(one.encoder_slots, np.int32)
            self.lens[row] = len(slots)
            self._views[row] = one.encoder_views
            self._unwritten[row] = slots.astype(np.int64)
            found[row] = slots
        return found

    def step(self, works: list[RowWork]) -> EncoderStep | None:
        """For the next step, which writes the keys of all its requests that have none yet. None when no request has encoder tokens."""
        if not self._views or not any(work.row in self._views for work in works):
            return None
        fresh = [self._unwritten.pop(work.row, None) for work in works]
        views = [self._views_of(work) for work in works]
        seen = [high > low for mine in views for _, _, low, high in mine]
        counts = [end - first for mine in views for first, end, _, _ in mine]
        return EncoderStep(
            lens=[int(self.lens[work.row]) for work in works],
            cached=[slots is None for slots in fresh],
            views=views,
            new_slots=np.concatenate(
                [np.empty(0, np.int64), *(slots for slots in fresh if slots is not None)]
            ),
            visible=np.repeat(np.array(seen, np.int64), counts),
        )

    def _views_of(self, work: RowWork) -> list[View]:
        """Every new token of a request is in one view; in front of the first medium it sees nothing."""
        known = [(0, 0, 0), *self._views.get(work.row, ())]
        ends = [position for position, _, _ in known[1:]]
        found = []
        for (position, low, high), after in zip(known, [*ends, None], strict=True):
            first = max(position - work.start, 0)
            end = work.num_tokens if after is None else min(after - work.start, work.num_tokens)
            if first < end:
                found.append((first, end, low, high))
        return found
