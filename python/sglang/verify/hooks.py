"""Listeners on both models: what transformers computed for one sequence, and how far the engine is from it, row by row.

Legend: n positions of the watched request, T rows of an engine's step, H query heads, K kv heads, d head dim.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.verify.pairing import (
    ATTENTION,
    INPUT,
    LOGITS,
    OUTPUT,
    RESIDUAL,
    SCORES,
    Site,
    SiteError,
)
from sglang.verify.subject import Session


class ReferenceRecord:
    """What every wanted module of transformers computed for one sequence: float32 [n, width] per site."""

    def __init__(self, model: Any, sites: Sequence[Site]) -> None:
        self._model = model
        self._sites = sites
        self._seen: dict[tuple[str, str], tuple[int, torch.Tensor]] = {}
        self._heads: dict[str, tuple[int, torch.Tensor, torch.Tensor, float]] = {}
        self._clock = 0
        self._stack = contextlib.ExitStack()
        self.values: dict[Site, tuple[int, torch.Tensor]] = {}

    def __enter__(self) -> ReferenceRecord:
        modules = dict(self._model.named_modules())
        for path in {site.theirs for site in self._sites if site.part not in (LOGITS, SCORES)}:
            before = modules[path].register_forward_pre_hook(self._note_input(path))
            after = modules[path].register_forward_hook(self._note_output(path))
            self._stack.callback(before.remove)
            self._stack.callback(after.remove)
        attentions = {modules[s.theirs]: s.theirs for s in self._sites if s.part == SCORES}
        for name in {type(module).__module__ for module in attentions}:
            self._stack.enter_context(self._listen_to_attention(sys.modules[name], attentions))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def finish(self, logits: torch.Tensor, num_tokens: int) -> None:
        """Lay out what was seen by site."""
        self.num_tokens = num_tokens
        for site in self._sites:
            if site.part == LOGITS:
                self.values[site] = (self._clock, logits)
            elif site.part == SCORES and site.theirs in self._heads:
                order, q, k, scaling = self._heads[site.theirs]
                n = num_tokens
                self.values[site] = (order, causal_scores(q[:n], k[:n], scaling))
            else:
                kind = OUTPUT if site.part == OUTPUT else INPUT
                seen = self._seen.get((site.theirs, kind))
                # Padding behind the sequence is cut off; a batch dimension of one disappears.
                if seen is not None and seen[1].numel() % seen[1].shape[1] == 0:
                    self.values[site] = (seen[0], _rows(seen[1], seen[1].shape[1])[:num_tokens])
        self._seen.clear()

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _note_input(self, path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._note(path, INPUT, args)

        return hook

    def _note_output(self, path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._note(path, OUTPUT, output)

        return hook

    def _note(self, path: str, kind: str, value: Any) -> None:
        tensor = first_tensor(value)
        if tensor is not None and tensor.dim() > 1 and (path, kind) not in self._seen:
            self._seen[path, kind] = (self._tick(), tensor.detach().float().cpu().clone())

    @contextlib.contextmanager
    def _listen_to_attention(self, module: Any, paths: dict[nn.Module, str]) -> Iterator[None]:
        """Model files of transformers call `eager_attention_forward(module, q, k, v, mask, scaling)`, q and k [1, H, n, d]."""
        honest = vars(module).get("eager_attention_forward")
        if honest is None:
            yield
            return

        def listening(
            attention: nn.Module, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any
        ) -> Any:
            scaling = kwargs["scaling"] if "scaling" in kwargs else args[1]
            if attention in paths and q.shape[2] == k.shape[2]:
                heads = [t[0].transpose(0, 1).detach().float().cpu().clone() for t in (q, k)]
                scale = q.shape[-1] ** -0.5 if scaling is None else float(scaling)
                self._heads[paths[attention]] = (self._tick(), heads[0], heads[1], scale)
            return honest(attention, q, k, v, *args, **kwargs)

        module.eager_attention_forward = listening
        try:
            yield
        finally:
            module.eager_attention_forward = honest


class SubjectWatch:
    """Compares the rows of one request with the record while the engine computes them."""

    def __init__(
        self, runner: ModelRunner, session: Session, rid: str, record: ReferenceRecord
    ) -> None:
        self._runner = runner
        self._session = session
        self._rid = rid
        self._record = record
        self._stack = contextlib.ExitStack()
        self._errors: dict[Site, SiteError] = {}
        self._keys: dict[str, torch.Tensor] = {}
        # Of the running step: the request's rows, its first position, all rows.
        self._share: tuple[slice, int, int] | None = None

    def __enter__(self) -> SubjectWatch:
        modules = dict(self._runner.model.named_modules())
        by_path: dict[str, list[Site]] = {}
        for site in self._record.values:
            if site.part != LOGITS:
                by_path.setdefault(site.ours, []).append(site)
        for path, sites in by_path.items():
            before = modules[path].register_forward_pre_hook(self._before(sites))
            after = modules[path].register_forward_hook(self._after(sites))
            self._stack.callback(before.remove)
            self._stack.callback(after.remove)
        honest = self._runner.forward
        self._runner.forward = self._forward(honest)  # type: ignore[method-assign]
        self._stack.callback(vars(self._runner).pop, "forward")
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def errors(self) -> list[SiteError]:
        return sorted(self._errors.values(), key=lambda error: error.order)

    def _forward(self, honest: Any) -> Any:
        def forward(batch: ForwardBatch) -> LogitsProcessorOutput:
            self._share = self._find_share(batch)
            output = honest(batch)
            for site in self._record.values:
                if site.part == LOGITS and output.full_logits is not None:
                    self._compare(site, output.full_logits)
            self._share = None
            return output

        return forward

    def _find_share(self, batch: ForwardBatch) -> tuple[slice, int, int] | None:
        planner = self._session.planner
        rows = {
            req.cache.row: req.rid
            for req in planner.running + planner.prefilling
            if req.cache is not None
        }
        lens = [1] * batch.batch_size
        if not batch.forward_mode.is_decode():
            lens = list(batch.extend_seq_lens_cpu or lens)
        positions, pool_indices = batch.positions, batch.req_pool_indices
        assert positions is not None and pool_indices is not None, "a batch without requests"
        first = 0
        for row, length in zip(pool_indices.tolist(), lens, strict=True):
            if rows.get(row) == self._rid:
                return slice(first, first + length), int(positions[first]), len(positions)
            first += length
        return None

    def _before(self, sites: list[Site]) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            for site in sites:
                if site.part == INPUT:
                    self._compare(site, first_tensor(args))
                elif site.part == SCORES and isinstance(module, RadixAttention):
                    self._compare_scores(site, module, args)

        return hook

    def _after(self, sites: list[Site]) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            pair = _two_alike(output)
            for site in sites:
                if site.part == RESIDUAL and pair is not None:
                    self._compare(site, pair[1])
                elif site.part == OUTPUT and site.is_block and pair is not None:
                    self._compare(site, pair[0] + pair[1])
                elif site.part in (OUTPUT, ATTENTION):
                    self._compare(site, first_tensor(output))

        return hook

    def _compare(self, site: Site, value: torch.Tensor | None) -> None:
        if self._share is None or value is None:
            return
        rows, start, num_rows = self._share
        order, theirs = self._record.values[site]
        if value.numel() % num_rows:
            return
        ours = _rows(value.detach(), num_rows)[rows].float().cpu()
        if site.columns is not None:
            ours = ours[:, site.columns[0] : sum(site.columns)]
        theirs = theirs[start : start + len(ours)]
        if ours.shape[1] == theirs.shape[1] or site.part == LOGITS:
            self._note(site, start, ours[: len(theirs), : theirs.shape[1]], theirs)

    def _compare_scores(self, site: Site, layer: RadixAttention, args: tuple[Any, ...]) -> None:
        """Scores do not change when q and k are stored in another order of dimensions, as some rotations want it."""
        if self._share is None or len(args) < 2 or args[1] is None:
            return
        rows, start, num_rows = self._share
        q, k = (t.detach().reshape(num_rows, -1, layer.qk_head_dim)[rows] for t in args[:2])
        n = self._record.num_tokens
        keys = self._keys.get(site.ours)
        if keys is None:
            keys = torch.full((n, *k.shape[1:]), torch.nan)
        keys[start : start + len(k)] = k[: n - start].float().cpu()
        self._keys[site.ours] = keys
        theirs = self._record.values[site][1][start : start + len(q)]
        ours = causal_scores(q[: n - start].float().cpu(), keys, layer.scaling, start)
        if ours.shape == theirs.shape:
            # Keys that came out of the cache were computed by another request and are not seen here.
            self._note(site, start, torch.where(ours.isnan(), theirs, ours), theirs)

    def _note(self, site: Site, start: int, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        if not len(theirs):
            return
        if site not in self._errors:
            order, whole = self._record.values[site]
            n = self._record.num_tokens
            self._errors[site] = SiteError(
                site,
                order,
                float(whole.abs().max()),
                torch.full((n,), torch.nan),
                torch.zeros(n, dtype=torch.long),
            )
        worst = (ours - theirs).abs().nan_to_num(nan=torch.inf).max(dim=-1)
        error = self._errors[site]
        error.errors[start : start + len(theirs)] = worst.values
        error.columns[start : start + len(theirs)] = worst.indices
        a, b = ours.double().flatten(), theirs.double().flatten()
        error.products += torch.stack([a @ a, a @ b, b @ b])


def causal_scores(q: torch.Tensor, k: torch.Tensor, scaling: float, start: int = 0) -> torch.Tensor:
    """q [n, H, d] at positions from `start` on, k [m, K, d] -> [n, H * m], zero for keys behind the query."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = torch.einsum("nhd,mhd->nhm", q, k) * scaling
    visible = torch.ones(len(q), len(k), dtype=torch.bool).tril(diagonal=start)
    return scores.masked_fill(~visible[:, None], 0.0).flatten(1)


def first_tensor(value: Any) -> torch.Tensor | None:
    """The first tensor of what a module takes or returns."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)) and value:
        return first_tensor(value[0])
    return None


def _two_alike(output: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """A pair of tensors of one shape: hidden states and residual."""
    if not isinstance(output, tuple) or len(output) != 2:
        return None
    first, second = output
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return (first, second) if first.shape == second.shape else None
    return None


def _rows(tensor: torch.Tensor, num_rows: int) -> torch.Tensor:
    return tensor.reshape(num_rows, -1)
