"""Plain causal attention on a CPU that reads keys and values where they lie.

A request's slots are a few runs of neighbours. Each run is attended to as a view of the pool, a prefix that several requests
share is attended to once for all their queries, and the parts are joined by their log-sum-exp (flash-decoding; Dao et al. 2023).
Legend: T tokens, n query rows, H query heads in groups of G over K kv heads, d head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Slots = slice | torch.Tensor  # a run, read in place, or int32 [m], gathered
SlotRow = npt.NDArray[np.int32]

# More runs than this are gathered into one.
_MAX_RUNS = 8
# A shared prefix is computed apart if that saves reading so many keys.
_MIN_SAVED = 256
# So many rows or fewer become, with the heads of a group, the rows of one small attention per kv head.
_MAX_FOLDED = 64
# Except that torch has a faster way for single rows, which pays while the keys are read from the processor's cache again.
_MAX_SINGLE_GROUP = 4
_MAX_SINGLE_KEYS = 512


@dataclass(frozen=True)
class Piece:
    """Queries `rows` of T over the keys `slots`; None: over their own new keys, causally."""

    rows: slice | torch.Tensor
    slots: Slots | None


@dataclass
class Round:
    """Pieces without a row in common. `rows` of T in the order of the pieces, int64."""

    pieces: list[Piece]
    rows: torch.Tensor


@dataclass(frozen=True)
class RowSpan:
    """One request of a step: rows `row .. row + num_new`, and the slots of all its positions."""

    row: int
    num_new: int
    slots: SlotRow

    @property
    def num_stored(self) -> int:
        """Keys that are read from the pool: of a single query all, else those before the new ones."""
        return len(self.slots) - (self.num_new if self.num_new > 1 else 0)


class StepRuns:
    """Which pieces one step consists of; the same for all of its layers."""

    def __init__(self, spans: list[RowSpan]) -> None:
        self.longest = max((len(span.slots) for span in spans), default=0)
        last: list[Piece] = []
        others: list[list[Piece]] = []  # pieces of one span or group, no two in one round
        starts = dict.fromkeys(range(len(spans)), 0)
        for members, num_shared in _shared_prefixes(spans):
            rows = _rows_of([spans[i] for i in members])
            runs = split_runs(spans[members[0]].slots[:num_shared])
            others.append([Piece(rows, run) for run in runs])
            starts.update(dict.fromkeys(members, num_shared))
        for i, span in enumerate(spans):
            rows = slice(span.row, span.row + span.num_new)
            pieces = [
                Piece(rows, run) for run in split_runs(span.slots[starts[i] : span.num_stored])
            ]
            last.append(pieces.pop() if span.num_new == 1 else Piece(rows, None))
            others.append(pieces)
        self.last = last  # every row has one of these, in the order of rows
        self.rounds = _in_rounds(others)

    def attend(
        self,
        q: torch.Tensor,
        fresh: tuple[torch.Tensor, torch.Tensor],
        pool: PoolHeads,
        scale: float,
    ) -> torch.Tensor:
        """q [T, H, d], new keys and values [T, K, d] -> [T, H * d] in the dtype of q."""
        call = _LayerCall(q, fresh, pool, scale)
        out, lse = call.run(self.last)
        if not self.rounds:
            return out.reshape(len(q), -1)
        out = out.float()
        for part in self.rounds:
            more, more_lse = call.run(part.pieces)
            rows = part.rows
            out[rows], lse[rows] = _merge(out[rows], lse[rows], more, more_lse)
        return out.to(q.dtype).reshape(len(q), -1)


class PoolHeads:
    """The pool of one layer as attention takes it, to be made once: keys and values [slots, K, d], and both by query head."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, num_heads: int) -> None:
        self.rows = (keys, values)
        self.group = num_heads // keys.shape[1]
        self.by_head = [by_query_head(part, self.group) for part in self.rows]


class _LayerCall:
    """The tensors of one layer in one step."""

    def __init__(
        self,
        q: torch.Tensor,
        fresh: tuple[torch.Tensor, torch.Tensor],
        pool: PoolHeads,
        scale: float,
    ) -> None:
        self.num_kv_heads, self.head_dim = pool.rows[0].shape[1:]
        self.group = pool.group
        self.q = q.view(len(q), self.num_kv_heads, self.group, self.head_dim)
        self.fresh, self.pool, self.scale = fresh, pool, scale

    def run(self, pieces: list[Piece]) -> tuple[torch.Tensor, torch.Tensor]:
        """[n, K, G, d] and the log-sum-exp [n, K, G] of all pieces."""
        results = [self._piece(piece) for piece in pieces]
        if len(results) == 1:
            return results[0]
        outs, sums = zip(*results, strict=True)
        return torch.cat(outs), torch.cat(sums)

    def _piece(self, piece: Piece) -> tuple[torch.Tensor, torch.Tensor]:
        q = self.q[piece.rows]
        if piece.slots is None:
            k, v = (by_query_head(part[piece.rows], self.group) for part in self.fresh)
            return self._unfolded(q, k, v, is_causal=True)
        k, v = self._keys(piece.slots)
        single = len(q) == 1 and (
            self.group <= 2 or (self.group <= _MAX_SINGLE_GROUP and k.shape[2] <= _MAX_SINGLE_KEYS)
        )
        if single or len(q) > _MAX_FOLDED:
            return self._unfolded(q, k, v, is_causal=False)
        return self._folded(q, k, v)

    def _keys(self, slots: Slots) -> list[torch.Tensor]:
        if isinstance(slots, slice):
            length = slots.stop - slots.start
            return [part.narrow(2, slots.start, length) for part in self.pool.by_head]
        gathered = (part.index_select(0, slots) for part in self.pool.rows)
        return [by_query_head(part, self.group) for part in gathered]

    def _folded(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and heads of a group side by side, so that each key is read once."""
        shape = (self.num_kv_heads, len(q), self.group)
        rows = q.transpose(0, 1).reshape(shape[0], 1, -1, self.head_dim)
        out, lse = _flash(rows, k[:, :1], v[:, :1], False, self.scale)
        return (
            out.view(*shape, self.head_dim).transpose(0, 1),
            lse.view(shape).transpose(0, 1),
        )

    def _unfolded(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, is_causal: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One attention per query head."""
        out, lse = _flash(q.permute(1, 2, 0, 3), k, v, is_causal, self.scale)
        return out.permute(2, 0, 1, 3), lse.permute(2, 0, 1)


def by_query_head(part: torch.Tensor, group: int) -> torch.Tensor:
    """[m, K, d] as [K, G, m, d]: the heads of a group share their keys without a copy."""
    num_rows, num_kv_heads, head_dim = part.shape
    return part.transpose(0, 1).unsqueeze(1).expand(num_kv_heads, group, num_rows, head_dim)


def split_runs(slots: SlotRow) -> list[Slots]:
    """The runs of neighbours, in order; many short ones as one tensor to gather."""
    if not len(slots):
        return []
    first, last = int(slots[0]), int(slots[-1])
    breaks = np.flatnonzero(slots[1:] - slots[:-1] != 1) + 1
    if not len(breaks):
        return [slice(first, last + 1)]
    if len(breaks) >= _MAX_RUNS:
        return [torch.from_numpy(slots.copy())]
    parts = np.split(slots, breaks)
    return [slice(int(part[0]), int(part[-1]) + 1) for part in parts]


def _shared_prefixes(spans: list[RowSpan]) -> list[tuple[list[int], int]]:
    """Requests that begin with the same slots, and how many of these are worth sharing."""
    groups: dict[int, list[int]] = {}
    for i, span in enumerate(spans):
        if span.num_stored:
            groups.setdefault(int(span.slots[0]), []).append(i)
    found = []
    for members in groups.values():
        if len(members) == 1:
            continue
        # A single query keeps its own last key, so that every row has a piece of its own.
        limit = min(spans[i].num_stored - (spans[i].num_new == 1) for i in members)
        first = spans[members[0]].slots[:limit]
        same = np.all([spans[i].slots[:limit] == first for i in members], axis=0)
        num_shared = limit if same.all() else int(same.argmin())
        if (len(members) - 1) * num_shared >= _MIN_SAVED:
            found.append((members, num_shared))
    return found


def _rows_of(spans: list[RowSpan]) -> slice | torch.Tensor:
    rows = np.concatenate([np.arange(span.row, span.row + span.num_new) for span in spans])
    if np.all(np.diff(rows) == 1):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return torch.from_numpy(rows)


def _in_rounds(others: list[list[Piece]]) -> list[Round]:
    """Each round takes the next piece of every span and group, unless one that it has already taken has the same rows."""
    rounds = []
    groups = [pieces for pieces in others if pieces]
    while groups:
        taken: list[Piece] = []
        seen: set[int] = set()
        for pieces in groups:
            rows = _row_numbers(pieces[0].rows)
            if seen.isdisjoint(rows.tolist()):
                seen.update(rows.tolist())
                taken.append(pieces.pop(0))
        numbers = torch.cat([_row_numbers(piece.rows) for piece in taken])
        rounds.append(Round(taken, numbers))
        groups = [pieces for pieces in groups if pieces]
    return rounds


def _row_numbers(rows: slice | torch.Tensor) -> torch.Tensor:
    return torch.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows


def _flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, is_causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's fused attention with its log-sum-exp: [b, h, n, d] -> [b, h, n, d], float32 [b, h, n]."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, is_causal=is_causal, scale=scale
    )
    return out, lse


def _merge(
    out: torch.Tensor, lse: torch.Tensor, more: torch.Tensor, more_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over two sets of keys from that over each. [n, K, G, d] float32 and [n, K, G]."""
    weight = torch.sigmoid(more_lse - lse).unsqueeze(-1)
    return torch.lerp(out, more.float(), weight), torch.logaddexp(lse, more_lse)
