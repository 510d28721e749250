"""The bound, and the comparison of one request with the reference.

    max |logit difference| <= 1e-4 x max(1, max |logit|)      over every position that was computed
    logprobs within the same bound; greedy tokens identical, but where two are as likely within the bound

Every position must have been seen: computed at least once, or taken from a cache whose content was computed and compared before.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from sglang.verify.reference import Continuation
from sglang.verify.subject import LogprobAsk, Trace

RELATIVE_BOUND = 1e-4


def bound_of(scale: float) -> float:
    """The largest difference allowed where the largest logit is `scale`."""
    return RELATIVE_BOUND * max(1.0, scale)


@dataclasses.dataclass
class Difference:
    """What was found for some requests. `problems` are differences in kind: tokens, missing positions, malformed lists."""

    max_abs_diff: float = 0.0
    bound: float = math.inf
    where: str = ""
    problems: list[str] = dataclasses.field(default_factory=list)
    num_positions: int = 0
    num_tokens: int = 0

    @property
    def passed(self) -> bool:
        return not self.problems and self.max_abs_diff <= self.bound

    @property
    def ratio(self) -> float:
        """Largest difference in units of its bound."""
        return self.max_abs_diff / self.bound

    def note(self, diff: float, bound: float, where: str) -> None:
        """Keep the worst difference. NaN is worse than everything."""
        diff = math.inf if math.isnan(diff) else diff
        if math.isinf(self.bound) or diff / bound > self.ratio:
            self.max_abs_diff, self.bound, self.where = diff, bound, where


def compare_trace(rid: str, trace: Trace, expected: Continuation, into: Difference) -> None:
    """Tokens, served logits and the logits of every computed position of one request."""
    if trace.finish_reason != "length":
        why = f" ({trace.finish_message})" if trace.finish_message else ""
        into.problems.append(
            f"{rid}: ended with {trace.finish_reason!r} instead of its length{why}"
        )
    same = _num_equal(trace.output_ids, expected.output_ids)
    if same < max(len(trace.output_ids), len(expected.output_ids)):
        into.problems.append(
            f"{rid}: greedy tokens differ from output {same} on "
            f"({trace.output_ids[same : same + 3]} instead of {list(expected.output_ids[same : same + 3])})"
        )
    # Behind a wrong token the two compute different sequences; up to there every position counts.
    end = min(len(expected.prompt_ids) + same, len(expected.logits))
    seen = torch.zeros(end, dtype=torch.bool)
    seen[: trace.cached_tokens] = True
    bound = bound_of(expected.scale)
    for piece in trace.pieces:
        stop = min(piece.start + len(piece.logits), end)
        if stop <= piece.start:
            continue
        theirs = expected.logits[piece.start : stop]
        diffs = (piece.logits[: stop - piece.start] - theirs).abs().amax(dim=-1)
        into.note(float(diffs.max()), bound, f"{rid} position {piece.start + int(diffs.argmax())}")
        seen[piece.start : stop] = True
        if piece.served is not None and stop == piece.start + len(piece.logits):
            diff = (piece.served - theirs[-1]).abs().max()
            into.note(float(diff), bound, f"{rid} sampled position {stop - 1}")
    if not bool(seen.all()):
        into.problems.append(f"{rid}: positions never computed: {(~seen).nonzero()[:, 0].tolist()}")
    into.num_positions += end
    into.num_tokens += len(expected.output_ids)


def compare_logprobs(
    rid: str, trace: Trace, ask: LogprobAsk, expected: Continuation, into: Difference
) -> None:
    """Every list of logprobs that the request asked for."""
    table = torch.log_softmax(expected.logits.double(), dim=-1)
    n, chunk = len(expected.prompt_ids), trace.logprobs
    ids = [*expected.prompt_ids, *expected.output_ids]
    outputs = range(n, n + len(expected.output_ids))
    check = _LogprobCheck(rid, table, ids, bound_of(expected.scale), into)
    check.tokens("output", chunk.output_token, outputs)
    check.tops("output top", chunk.output_top, outputs, ask.top)
    check.chosen("output ids", chunk.output_ids, outputs, ask.token_ids)
    inputs = range(ask.start, n) if 0 <= ask.start < n else range(0)
    check.tokens("input", chunk.input_token or [], inputs)
    check.tops("input top", chunk.input_top or [], inputs, ask.top)
    check.chosen("input ids", chunk.input_ids or [], inputs, ask.token_ids)


Pairs = Sequence[tuple[float, int]]


class _LogprobCheck:
    """Compares lists of (logprob, id) whose i-th entry is about the token at `positions[i]`; position 0 has None."""

    def __init__(
        self, rid: str, table: torch.Tensor, ids: list[int], bound: float, into: Difference
    ) -> None:
        self._rid = rid
        self._table = table
        self._ids = ids
        self._bound = bound
        self._into = into

    def tokens(self, name: str, entries: Sequence, positions: range) -> None:
        if not self._has_length(name, entries, len(positions)):
            return
        for (value, token), position in zip(entries, positions, strict=True):
            if token != self._ids[position]:
                self._problem(f"{name} {position}: token {token}, not {self._ids[position]}")
            elif position == 0:
                if value is not None:
                    self._problem(f"{name} 0: the first token has logprob {value}, not None")
            else:
                self._note(name, value, position, token)

    def tops(self, name: str, rows: Sequence, positions: range, num: int) -> None:
        if not self._has_length(name, rows, len(positions) if num else 0):
            return
        for row, position in zip(rows, positions, strict=False):
            if self._is_missing(name, row, position):
                continue
            best = self._table[position - 1].topk(num).values.tolist()
            # Near ties may come in another order, so values are compared by rank and ids by their own value.
            if len({token for _, token in row}) != num:
                self._problem(f"{name} {position}: {row} are not {num} different tokens")
                continue
            for (value, token), value_by_rank in zip(row, best, strict=True):
                self._note(name, value, position, token)
                self._into.note(abs(value - value_by_rank), self._bound, f"{self._rid} {name} rank")

    def chosen(self, name: str, rows: Sequence, positions: range, ids: tuple[int, ...]) -> None:
        if not self._has_length(name, rows, len(positions) if ids else 0):
            return
        for row, position in zip(rows, positions, strict=False):
            if self._is_missing(name, row, position):
                continue
            if [token for _, token in row] != list(ids):
                self._problem(f"{name} {position}: {row} are not about the tokens {ids}")
                continue
            for value, token in row:
                self._note(name, value, position, token)

    def _is_missing(self, name: str, row: Pairs | None, position: int) -> bool:
        if (row is None) != (position == 0):
            self._problem(f"{name} {position}: {row}; only position 0 has None")
        return row is None or position == 0

    def _has_length(self, name: str, entries: Sequence, wanted: int) -> bool:
        if len(entries) != wanted:
            self._problem(f"{name} logprobs: {len(entries)} entries, not {wanted}")
        return len(entries) == wanted

    def _note(self, name: str, value: float, position: int, token: int) -> None:
        if token >= self._table.shape[1]:  # a medium's token, which has no logit
            if value != float("-inf"):
                self._problem(f"{name} {position}: token {token} has logprob {value}, not -inf")
            return
        diff = abs(value - float(self._table[position - 1, token]))
        self._into.note(diff, self._bound, f"{self._rid} {name} logprob of position {position}")

    def _problem(self, text: str) -> None:
        self._into.problems.append(f"{self._rid}: {text}")


def _num_equal(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Length of the common beginning."""
    pairs = zip(ours, theirs, strict=False)
    shorter = min(len(ours), len(theirs))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
