"""Log probabilities of prompt tokens: collected on the device, block by block, and copied to the host without waiting for it.

Rows are the rows of the step that were asked for, request after request; each predicts the token behind it. N: rows, V: vocabulary,
K: the most alternatives that a request wants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch

from sglang.srt.utils.upload import upload

if TYPE_CHECKING:
    from sglang.srt.platforms import Platform


class PromptRows(NamedTuple):
    """What one request gets, an entry per row; the lists for which it did not ask are empty."""

    chosen: list[float]
    top: list[tuple[list[float], list[int]]]  # values, ids
    given: list[list[float]]


class PromptLogprobs:
    """Natural logarithms of the model's plain distribution.

    Args:
        counts: rows of each request.
        top_counts: how many of the likeliest tokens each request wants.
        token_ids: the ids each request names, within the vocabulary.
    """

    def __init__(
        self,
        counts: Sequence[int],
        top_counts: Sequence[int],
        token_ids: Sequence[Sequence[int] | None],
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self._counts = counts
        self._top_counts = top_counts
        self._given_ids = [ids or () for ids in token_ids]
        self._ends = list(accumulate(counts))  # in rows, of each request
        # The values at given ids lie request after request, then row after row.
        sizes = [n * len(ids) for n, ids in zip(counts, self._given_ids, strict=True)]
        self._given_ends = list(accumulate(sizes))
        num_rows = sum(counts)
        wanted = (top for top, n in zip(top_counts, counts, strict=True) if n)
        width = min(max(wanted, default=0), vocab_size)
        self.chosen = torch.empty(num_rows, dtype=torch.float32, device=device)  # [N]
        self._top_values = torch.empty(num_rows, width, dtype=torch.float32, device=device)
        self._top_ids = torch.empty(num_rows, width, dtype=torch.int64, device=device)
        self._given = torch.empty(sum(sizes), dtype=torch.float32, device=device)
        flat = [token for ids in self._given_ids for token in ids] if sum(sizes) else []
        self._ids = upload(flat, torch.int64, device).split(
            [len(i) if flat else 0 for i in self._given_ids]
        )

    def collect(self, logprobs: torch.Tensor, first: int, targets: torch.Tensor) -> None:
        """Take over logprobs [n, V] of the rows from `first` on; `targets` [n] int64 are the tokens behind them."""
        end = first + len(logprobs)
        self.chosen[first:end] = logprobs_of(logprobs, targets)
        width = self._top_ids.shape[1]
        if width:
            self._top_values[first:end], self._top_ids[first:end] = logprobs.topk(width, dim=-1)
        if not len(self._given):
            return
        for request, ids in enumerate(self._ids):
            begin = self._ends[request] - self._counts[request]
            low, high = max(begin, first), min(self._ends[request], end)
            if low < high and len(ids):
                values = logprobs[low - first : high - first].index_select(1, ids)
                offset = self._given_ends[request] - (self._ends[request] - low) * len(ids)
                self._given[offset : offset + values.numel()] = values.flatten()

    def download(self, platform: Platform) -> Callable[[], dict[int, PromptRows]]:
        """Queue copies to the host. The function returned waits for them; its result has the requests with rows, by index."""
        parts = [self.chosen]
        if self._top_ids.shape[1]:
            parts += [self._top_values, self._top_ids]
        if len(self._given):
            parts.append(self._given)
        wait = platform.download(*parts)
        return lambda: self._rows_of([part.tolist() for part in wait()])

    def _rows_of(self, parts: list[list]) -> dict[int, PromptRows]:
        """`parts`: what was downloaded, in that order."""
        chosen, *rest = parts
        given = rest.pop() if len(self._given) else []
        top_values, top_ids = rest or ([], [])
        rows = {}
        for request, (count, end) in enumerate(zip(self._counts, self._ends, strict=True)):
            if not count:
                continue
            mine = slice(end - count, end)
            row = rows[request] = PromptRows(chosen[mine], [], [])
            top = self._top_counts[request]
            if top:
                pairs = zip(top_values[mine], top_ids[mine], strict=True)
                row.top.extend((values[:top], ids[:top]) for values, ids in pairs)
            width, last = len(self._given_ids[request]), self._given_ends[request]
            if width:
                starts = range(last - count * width, last, width)
                row.given.extend(given[start : start + width] for start in starts)
        return rows


def logprobs_of(logprobs: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Entry `ids[i]` of each row i; -inf for an id that the head has no logit for (a medium's, behind the vocabulary)."""
    last = logprobs.shape[1] - 1
    found = logprobs.gather(1, ids.clamp(max=last)[:, None]).squeeze(1)
    return found.masked_fill(ids > last, float("-inf"))
