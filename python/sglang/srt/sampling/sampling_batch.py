"""Sampling parameters of the rows, on the device, and the slice of them that one step needs.

`SamplingTable` belongs to the worker. Parameters are uploaded once, when a row is set up; a step selects columns by row. What a
step does not need (no penalties, no top-p, everything greedy ...) is known on the host and costs no tensor operation.
B: sampled rows of a step, R: rows, V: vocabulary, W: ceil(V / 32).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from sglang.srt.managers.step_plan import RowSetup, RowWork, SamplingSpec
from sglang.srt.sampling.penalties import PenaltyBatch, PenaltyTable
from sglang.srt.sampling.row_masks import RowMasks
from sglang.srt.utils.upload import upload

# Columns of the float table.
_TEMPERATURE, _TOP_P, _MIN_P = range(3)


class SamplingTable:
    """One line of sampling parameters per row, [R]. Not thread-safe."""

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device | str) -> None:
        self._vocab_size = vocab_size
        self._device = torch.device(device)
        self._specs: list[SamplingSpec | None] = [None] * max_rows
        self._floats = torch.zeros(max_rows, 3, dtype=torch.float32, device=self._device)
        self._ints = torch.zeros(max_rows, 2, dtype=torch.int64, device=self._device)  # top_k, seed
        self._penalties = PenaltyTable(vocab_size, self._device)
        self._version = 0
        self._cached: tuple[tuple[int, ...], int, SamplingColumns] | None = None

    def set_row(self, setup: RowSetup) -> None:
        """Bind `setup.row` to a request; replaces whatever the row held, penalties included."""
        spec = setup.sampling
        self._specs[setup.row] = spec
        floats = [spec.temperature, spec.top_p, spec.min_p]
        self._floats[setup.row] = upload(floats, torch.float32, self._device)
        ints = [self._top_k(spec), spec.seed or 0]
        self._ints[setup.row] = upload(ints, torch.int64, self._device)
        self._penalties.set_row(setup)
        self._version += 1

    def batch(
        self,
        rows: Sequence[int],
        works: Sequence[RowWork],
        masks: RowMasks | None = None,
    ) -> SamplingBatch:
        """What the sampler needs for one step.

        Args:
            rows: the rows that sample in this step, in the order of the logits; each at most once.
            works: their work items, same order.
            masks: of those of the rows that a grammar binds.
        """
        specs = [self._spec(row) for row in rows]
        return SamplingBatch(
            columns=self._columns(rows, specs),
            num_outputs=[work.num_outputs for work in works],
            forbidden=self._forbidden(rows, specs, works, masks),
            grammar=None if masks is None else self._grammar_mask(rows, masks),
            logprobs=self._logprob_request(works),
        )

    def _spec(self, row: int) -> SamplingSpec:
        spec = self._specs[row]
        assert spec is not None, f"row {row} samples before it was set up"
        return spec

    def _top_k(self, spec: SamplingSpec) -> int:
        return self._vocab_size if spec.top_k < 0 else min(spec.top_k, self._vocab_size)

    def _columns(self, rows: Sequence[int], specs: list[SamplingSpec]) -> SamplingColumns:
        """Selected parameters; kept while the same rows decode step after step."""
        key = tuple(rows)
        if self._cached is not None and self._cached[:2] == (key, self._version):
            return self._cached[2]
        columns = self._select_columns(rows, specs)
        self._cached = (key, self._version, columns)
        return columns

    def _select_columns(self, rows: Sequence[int], specs: list[SamplingSpec]) -> SamplingColumns:
        drawn = [spec for spec in specs if not spec.is_greedy]
        columns = SamplingColumns(
            all_greedy=not drawn,
            any_greedy=len(drawn) < len(specs),
            max_top_k=max(map(self._top_k, drawn), default=1),
            needs_top_k=any(0 < spec.top_k < self._vocab_size for spec in drawn),
            needs_top_p=any(spec.top_p < 1.0 for spec in drawn),
            needs_min_p=any(spec.min_p > 0.0 for spec in drawn),
            penalties=self._penalties.batch(rows, specs),
            bias=self._bias(specs),
        )
        seeded = [i for i, s in enumerate(specs) if s.seed is not None and not s.is_greedy]
        needs_temperature = any(spec.temperature != 1.0 for spec in specs)
        if columns.all_greedy and not needs_temperature:
            return columns
        index = self._long(list(rows))
        floats, ints = self._floats[index], self._ints[index]
        if needs_temperature:
            columns.temperature = floats[:, _TEMPERATURE, None]
        columns.top_k = ints[:, 0, None]
        columns.top_p = floats[:, _TOP_P, None]
        columns.min_p = floats[:, _MIN_P, None]
        if seeded:
            columns.seeded_list = seeded
            columns.seeded = self._long(seeded)
            columns.seeds = ints[columns.seeded, 1]
        return columns

    def _bias(self, specs: list[SamplingSpec]) -> SparseBias | None:
        entries = [
            (i, token, value)
            for i, spec in enumerate(specs)
            for token, value in (spec.logit_bias or {}).items()
            if 0 <= token < self._vocab_size
        ]
        if not entries:
            return None
        lines, tokens, values = zip(*entries, strict=True)
        return SparseBias(
            line=self._long(list(lines)),
            token=self._long(list(tokens)),
            value=upload(values, torch.float32, self._device),
        )

    def _forbidden(
        self,
        rows: Sequence[int],
        specs: list[SamplingSpec],
        works: Sequence[RowWork],
        masks: RowMasks | None,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(line, token), int64: stop ids of requests that are shorter than `min_new_tokens`.

        A grammar that is complete allows nothing but a stop id, so rows under a grammar are left alone.
        """
        bound = set() if masks is None else set(masks.rows)
        pairs = [
            (i, token)
            for i, (row, spec, work) in enumerate(zip(rows, specs, works, strict=True))
            if work.num_outputs < spec.min_new_tokens and row not in bound
            for token in spec.stop_ids
            if 0 <= token < self._vocab_size
        ]
        if not pairs:
            return None
        lines, tokens = zip(*pairs, strict=True)
        return self._long(list(lines)), self._long(list(tokens))

    def _grammar_mask(self, rows: Sequence[int], masks: RowMasks) -> GrammarMask:
        lines = {row: line for line, row in enumerate(rows)}
        every_line = masks.rows == list(rows)
        return GrammarMask(
            line=None if every_line else self._long([lines[row] for row in masks.rows]),
            packed=upload(torch.from_numpy(masks.words), torch.int32, self._device),
        )

    def _logprob_request(self, works: Sequence[RowWork]) -> LogprobRequest | None:
        lines = [i for i, work in enumerate(works) if work.return_logprob]
        if not lines:
            return None
        given = [works[i].token_ids_logprob or [] for i in lines]
        width = max(map(len, given))
        padded = [ids + [0] * (width - len(ids)) for ids in given]
        return LogprobRequest(
            lines=lines,
            line=None if len(lines) == len(works) else self._long(lines),
            top_counts=[works[i].top_logprobs for i in lines],
            given_counts=[
                None if works[i].token_ids_logprob is None else len(ids)
                for i, ids in zip(lines, given, strict=True)
            ],
            given=self._long_table(padded) if width else None,
        )

    def _long(self, values: list[int]) -> torch.Tensor:
        return upload(values, torch.int64, self._device)

    def _long_table(self, values: list[list[int]]) -> torch.Tensor:
        table = upload(values, torch.int64, self._device)
        return table.clamp_(0, self._vocab_size - 1)


@dataclasses.dataclass
class SparseBias:
    """Values to add at (line, token) of the logits; all three [N]."""

    line: torch.Tensor  # int64
    token: torch.Tensor  # int64
    value: torch.Tensor  # float32


@dataclasses.dataclass
class GrammarMask:
    """Packed masks of the lines that a grammar constrains."""

    line: torch.Tensor | None  # [n] int64; None: every line, in order
    packed: torch.Tensor  # [n, W] int32


@dataclasses.dataclass
class LogprobRequest:
    """Which lines want logprobs and of what; `n` lines."""

    lines: list[int]
    line: torch.Tensor | None  # [n] int64; None: every line
    top_counts: list[int]
    given_counts: list[int | None]  # None: the request named no ids
    given: torch.Tensor | None  # [n, G] int64, padded with 0


@dataclasses.dataclass
class SamplingColumns:
    """The part of a batch that only depends on which rows are in it. Tensors are None when unneeded."""

    all_greedy: bool
    any_greedy: bool
    max_top_k: int  # largest top_k of the rows that are drawn, V when one has none
    needs_top_k: bool
    needs_top_p: bool
    needs_min_p: bool
    penalties: PenaltyBatch | None
    bias: SparseBias | None
    temperature: torch.Tensor | None = None  # [B, 1] float32
    top_k: torch.Tensor | None = None  # [B, 1] int64, V = off
    top_p: torch.Tensor | None = None  # [B, 1] float32
    min_p: torch.Tensor | None = None  # [B, 1] float32
    seeded_list: list[int] = dataclasses.field(default_factory=list)
    seeded: torch.Tensor | None = None  # [S] int64, lines with a seed of their own
    seeds: torch.Tensor | None = None  # [S] int64


@dataclasses.dataclass
class SamplingBatch:
    """Everything `Sampler` needs besides the logits, for one step."""

    columns: SamplingColumns
    num_outputs: list[int]  # tokens produced so far, per line
    forbidden: tuple[torch.Tensor, torch.Tensor] | None
    grammar: GrammarMask | None
    logprobs: LogprobRequest | None

    def seed_positions(self) -> torch.Tensor:
        """Positions [S] int64 of the seeded lines in their own streams."""
        columns = self.columns
        assert columns.seeded is not None, "no line of this batch has a seed"
        values = [self.num_outputs[i] for i in columns.seeded_list]
        return upload(values, torch.int64, columns.seeded.device)
