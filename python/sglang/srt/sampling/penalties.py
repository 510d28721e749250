"""Penalties on tokens that a request has already seen.

Tables on the device, one slot per row that needs one, so that a server without penalties holds nothing. They are written from
the sampled ids right after sampling, without a copy to the host. P: rows with a penalty in this step, V: vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from sglang.srt.managers.step_plan import RowSetup, SamplingSpec
from sglang.srt.utils.upload import upload

_FIRST_SLOTS = 4


class PenaltyTable:
    """What each row has produced (frequency, presence) and seen (repetition).

    Frequency and presence penalties count output tokens; the repetition penalty looks at prompt and output, as in Transformers.
    """

    def __init__(self, vocab_size: int, device: torch.device | str) -> None:
        self._vocab_size = vocab_size
        self._device = torch.device(device)
        self._counts = _SlotTable(vocab_size, torch.int32, self._device)
        self._seen = _SlotTable(vocab_size, torch.bool, self._device)

    def set_row(self, setup: RowSetup) -> None:
        """Start (or, after a retraction, restore) the row; the row's former content is forgotten."""
        row, spec = setup.row, setup.sampling
        self._counts.release(row)
        self._seen.release(row)
        if _counts_outputs(spec):
            counts = torch.bincount(self._known(setup.output_ids), minlength=self._vocab_size)
            self._counts.assign(row).copy_(upload(counts, torch.int32, self._device))
        if spec.repetition_penalty != 1.0:
            ids = self._known(setup.prompt_ids + setup.output_ids)
            self._seen.assign(row).index_fill_(0, upload(ids, torch.int64, self._device), True)

    def batch(self, rows: Sequence[int], specs: Sequence[SamplingSpec]) -> PenaltyBatch | None:
        """The penalties of this step's sampled rows; None when no row has any."""
        counted = [i for i, spec in enumerate(specs) if _counts_outputs(spec)]
        repeated = [i for i, spec in enumerate(specs) if spec.repetition_penalty != 1.0]
        if not counted and not repeated:
            return None
        return PenaltyBatch(
            outputs=OutputPenalty(
                table=self._counts,
                slots=self._long([self._counts.slot(rows[i]) for i in counted]),
                index=self._long(counted),
                frequency=self._column([specs[i].frequency_penalty for i in counted]),
                presence=self._column([specs[i].presence_penalty for i in counted]),
            )
            if counted
            else None,
            repetition=RepetitionPenalty(
                table=self._seen,
                slots=self._long([self._seen.slot(rows[i]) for i in repeated]),
                index=self._long(repeated),
                penalty=self._column([specs[i].repetition_penalty for i in repeated]),
            )
            if repeated
            else None,
        )

    def _known(self, ids: list[int]) -> torch.Tensor:
        """Ids that are in the vocabulary, int64, cpu; placeholders of images lie outside it."""
        tensor = torch.tensor(ids, dtype=torch.int64)
        return tensor[(tensor >= 0) & (tensor < self._vocab_size)]

    def _long(self, values: list[int]) -> torch.Tensor:
        return upload(values, torch.int64, self._device)

    def _column(self, values: list[float]) -> torch.Tensor:
        return upload(values, torch.float32, self._device).unsqueeze(1)


@dataclasses.dataclass
class PenaltyBatch:
    """The penalties of one step. Valid until the next `PenaltyTable.set_row`."""

    outputs: OutputPenalty | None
    repetition: RepetitionPenalty | None

    def apply(self, logits: torch.Tensor) -> None:
        """Change `logits` [B, V] float32 in place; repetition first, on the model's own values."""
        if self.repetition is not None:
            self.repetition.apply(logits)
        if self.outputs is not None:
            self.outputs.apply(logits)

    def record(self, next_ids: torch.Tensor) -> None:
        """Note the sampled tokens [B] int64; stays on the device."""
        if self.repetition is not None:
            part, seen = self.repetition, self.repetition.table.data
            # `= True` would be copied from the host, and the copy waited for.
            seen.index_put_((part.slots, next_ids[part.index]), seen.new_ones(()))
        if self.outputs is not None:
            counts = self.outputs.table.data
            slots, ids = self.outputs.slots, next_ids[self.outputs.index]
            counts[slots, ids] += 1  # slots are distinct, so no pair occurs twice


@dataclasses.dataclass
class OutputPenalty:
    """Penalties on tokens that rows have produced, by their counts. Legend: P rows that have such a penalty."""

    table: _SlotTable
    slots: torch.Tensor  # [P] int64
    index: torch.Tensor  # [P] int64, positions in the batch
    frequency: torch.Tensor  # [P, 1] float32
    presence: torch.Tensor  # [P, 1] float32

    def apply(self, logits: torch.Tensor) -> None:
        counts = self.table.data[self.slots].float()  # [P, V]
        penalty = self.frequency * counts + self.presence * (counts > 0)
        logits.index_add_(0, self.index, penalty, alpha=-1)


@dataclasses.dataclass
class RepetitionPenalty:
    """Penalties on tokens that rows have seen, once each. Legend: P rows that have such a penalty."""

    table: _SlotTable
    slots: torch.Tensor  # [P] int64
    index: torch.Tensor  # [P] int64
    penalty: torch.Tensor  # [P, 1] float32

    def apply(self, logits: torch.Tensor) -> None:
        part = logits[self.index]  # [P, V]
        scaled = torch.where(part > 0, part / self.penalty, part * self.penalty)
        logits[self.index] = torch.where(self.table.data[self.slots], scaled, part)


class _SlotTable:
    """A device table [slots, V] that grows by doubling; rows of the engine borrow its slots."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.data = torch.zeros(0, width, dtype=dtype, device=device)
        self._slots: dict[int, int] = {}
        self._free: list[int] = []

    def slot(self, row: int) -> int:
        return self._slots[row]

    def assign(self, row: int) -> torch.Tensor:
        """A zeroed slot for `row`; returns the view [V] of it."""
        if not self._free:
            self._grow()
        slot = self._slots[row] = self._free.pop()
        return self.data[slot].zero_()

    def release(self, row: int) -> None:
        slot = self._slots.pop(row, None)
        if slot is not None:
            self._free.append(slot)

    def _grow(self) -> None:
        old = self.data
        num_old = old.shape[0]
        num_new = max(2 * num_old, _FIRST_SLOTS)
        self.data = torch.zeros(num_new, old.shape[1], dtype=old.dtype, device=old.device)
        self.data[:num_old] = old
        self._free.extend(range(num_old, num_new))


def _counts_outputs(spec: SamplingSpec) -> bool:
    return spec.frequency_penalty != 0.0 or spec.presence_penalty != 0.0
