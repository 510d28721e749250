"""What the layers of one step share in the torch backend: where each request's rows and slots are.

Each part is made when the first layer asks for it. Legend: T tokens, B requests, n new tokens of a request, m its keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from sglang.srt.layers.attention.torch_runs import RowSpan, Slots, StepRuns
from sglang.srt.model_executor.forward_batch_info import ForwardBatch


@dataclass
class RequestSpan:
    """One request of a step. Positions count the request's own tokens, without encoder tokens."""

    row: int  # first row of T
    num_new: int
    prefix_len: int
    slots: Slots  # of positions 0 .. prefix_len + num_new - 1
    encoder_slots: Slots | None = None
    # (first, end, low, high): new tokens first .. end - 1 see encoder tokens low .. high - 1.
    encoder_views: list[tuple[int, int, int, int]] = field(default_factory=list)
    bidirectional: list[tuple[int, int]] = field(default_factory=list)

    @property
    def seq_len(self) -> int:
        return self.prefix_len + self.num_new


@dataclass
class PaddedDecode:
    """All requests of a short decode in one rectangle. `slots` int32 [B * m]."""

    slots: torch.Tensor
    lens: torch.Tensor  # int64 [B, 1]
    positions: torch.Tensor  # int64 [1, m]
    _visible: dict[int, torch.Tensor] = field(default_factory=dict)  # by window

    def visible(self, window: int | None) -> torch.Tensor:
        """Visibility [B, 1, m], computed once per window size and step."""
        window = window or -1
        if window not in self._visible:
            visible = self.positions < self.lens
            if window > 0:
                visible &= self.positions >= self.lens - 1 - window
            self._visible[window] = visible.unsqueeze(1)
        return self._visible[window]


class StepMetadata:
    """See the module docstring. `masks` are those that layers keep for each other."""

    def __init__(self, batch: ForwardBatch) -> None:
        self._batch = batch
        self._spans: list[RequestSpan] | None = None
        self._padded: PaddedDecode | None = None
        self._runs: StepRuns | None = None
        self.num_padded = _count_padded(batch)  # slots of the rectangle, 0 where it is no use
        self.masks: dict[tuple[int, ...], torch.Tensor] = {}

    @property
    def spans(self) -> list[RequestSpan]:
        if self._spans is None:
            self._spans = _build_spans(self._batch)
        return self._spans

    @property
    def runs(self) -> StepRuns:
        """Only for tensors on a CPU."""
        if self._runs is None:
            self._runs = _build_runs(self._batch)
        return self._runs

    @property
    def padded(self) -> PaddedDecode:
        if self._padded is None:
            self._padded = _build_padded(self._batch)
        return self._padded


def _build_spans(batch: ForwardBatch) -> list[RequestSpan]:
    assert batch.seq_lens_cpu is not None and batch.req_pool_indices is not None
    seq_lens: list[int] = batch.seq_lens_cpu.tolist()
    new_lens = _new_lens(batch)
    encoder_lens = batch.encoder_lens_cpu or [0] * len(seq_lens)
    longest = max(e + s for e, s in zip(encoder_lens, seq_lens, strict=True))
    table = _read_table(batch, longest)
    spans, row = [], 0
    for i, (seq_len, num_new, encoder_len) in enumerate(
        zip(seq_lens, new_lens, encoder_lens, strict=True)
    ):
        span = RequestSpan(
            row,
            num_new,
            seq_len - num_new,
            _compact(table[i, encoder_len : encoder_len + seq_len]),
            _compact(table[i, :encoder_len]) if encoder_len else None,
            [(0, num_new, 0, encoder_len)]
            if batch.encoder_views is None
            else batch.encoder_views[i],
        )
        if batch.bidirectional_spans is not None:
            span.bidirectional = batch.bidirectional_spans[i]
        spans.append(span)
        row += num_new
    return spans


def _build_runs(batch: ForwardBatch) -> StepRuns:
    assert batch.seq_lens_cpu is not None
    seq_lens: list[int] = batch.seq_lens_cpu.tolist()
    new_lens = _new_lens(batch)
    table = _read_table(batch, max(seq_lens)).numpy()
    spans, row = [], 0
    for i, (seq_len, num_new) in enumerate(zip(seq_lens, new_lens, strict=True)):
        spans.append(RowSpan(row, num_new, table[i, :seq_len]))
        row += num_new
    return StepRuns(spans)


def _new_lens(batch: ForwardBatch) -> list[int]:
    if batch.forward_mode.is_decode():
        return [1] * batch.batch_size
    assert batch.extend_seq_lens_cpu is not None, "an extend needs extend_seq_lens_cpu"
    return batch.extend_seq_lens_cpu


def _read_table(batch: ForwardBatch, longest: int) -> torch.Tensor:
    """Slots int32 [B, longest]; none for a model that keeps no cache."""
    if batch.req_to_token_pool is None:
        return torch.empty(batch.batch_size, 0, dtype=torch.int32)
    return batch.req_to_token_pool.req_to_token[batch.req_pool_indices, :longest]


def _compact(slots: torch.Tensor) -> Slots:
    """A slice when the slots are consecutive. Only asked on the host, where looking costs
    nothing."""
    length = slots.shape[0]
    if slots.device.type != "cpu" or length == 0:
        return slots
    first = int(slots[0])
    if int(slots[-1]) - first != length - 1:
        return slots
    is_run = bool((slots[1:] - slots[:-1] == 1).all())
    return slice(first, first + length) if is_run else slots


def _count_padded(batch: ForwardBatch) -> int:
    """Slots of the rectangle around all requests of a decode; 0 if it is mostly padding, or there is one request."""
    if not batch.forward_mode.is_decode() or batch.encoder_lens_cpu is not None:
        return 0
    assert batch.seq_lens_cpu is not None
    lens: list[int] = batch.seq_lens_cpu.tolist()
    size = max(lens, default=0) * len(lens)
    return size if len(lens) > 1 and 2 * sum(lens) >= size else 0


def _build_padded(batch: ForwardBatch) -> PaddedDecode:
    """The rectangle of a decode."""
    assert batch.seq_lens_cpu is not None and batch.seq_lens is not None
    longest = int(batch.seq_lens_cpu.max())
    table = _read_table(batch, longest)
    positions = torch.arange(longest, device=table.device)[None]
    seq_lens = batch.seq_lens[:, None]
    # Past the end of a request stands its own first slot: entries there may be stale.
    slots = torch.where(positions < seq_lens, table, table[:, :1])
    return PaddedDecode(slots.flatten(), seq_lens, positions)
