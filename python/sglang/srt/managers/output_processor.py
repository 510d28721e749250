"""Commits the result of a step: requests advance, end, share their prefix, and report.

Runs after the device is done with a step. A token computed for a request that had already ended (overlap) is dropped here.
"""

from __future__ import annotations

import logging

from sglang.srt.managers.grammar_step import accept_token
from sglang.srt.managers.io_struct import (
    BatchTokenOutput,
    FinishReason,
    LogprobChunk,
    TokenOutput,
)
from sglang.srt.managers.planner import PlannedStep, Planner
from sglang.srt.managers.request import Req
from sglang.srt.managers.step_plan import RowLogprobs, RowWork, StepResult
from sglang.srt.managers.stop_checker import StopChecker

logger = logging.getLogger(__name__)


class OutputProcessor:
    """Turns `StepResult`s into advanced requests and a batch of news for the front."""

    def __init__(self, planner: Planner, stop_checker: StopChecker, stream_interval: int) -> None:
        self._planner = planner
        self._cache = planner.cache
        self._stop_checker = stop_checker
        self._stream_interval = stream_interval
        self._outbox: list[TokenOutput] = []

    def commit(self, step: PlannedStep, result: StepResult) -> None:
        """Apply the result of `step`; news collects until `take_outputs`."""
        bad, nan = {*result.bad_rows, *result.nan_rows}, set(result.nan_rows)
        for index, (req, work) in enumerate(zip(step.reqs, step.plan.works, strict=True)):
            req.num_in_flight -= 1
            if req.finish_reason is not None:
                self._release_if_idle(req)
                continue
            req.num_computed = work.start + work.num_tokens
            if index in bad:
                self._taint(req)
                if req.abort_reason is None:
                    self._blame_logits(req, index in nan)
            self._advance(req, work, result.next_ids[index], result.logprobs.get(index))

    def fail(self, step: PlannedStep, message: str) -> None:
        """End the requests of a step of which a part failed. No token came of it; what it has queued ends before what will be queued."""
        for req in step.reqs:
            req.num_in_flight -= 1
            if req.finish_reason is not None:
                self._release_if_idle(req)
            else:
                self.finish(req, req.abort_reason or unavailable(message))

    def _taint(self, req: Req) -> None:
        """What `req` computed is shared with nobody, and no longer where it was shared already."""
        req.is_tainted = True
        # After a retraction a part of its own came back to it through the cache.
        self._cache.withdraw(req.handle, min(req.cached_tokens, req.handle.num_cached_at_open))

    def _blame_logits(self, req: Req, is_nan: bool) -> None:
        """End `req` with this commit."""
        reason = _no_token_reason(req, is_nan)
        logger.error("Request %s ends: %s", req.rid, reason)
        req.abort_reason = server_error(reason)

    def _advance(self, req: Req, work: RowWork, next_id: int, logprobs: RowLogprobs | None) -> None:
        if req.abort_reason is not None:
            self.finish(req, req.abort_reason)
            return
        if logprobs is not None:
            _add_logprobs(req, work, logprobs)
        if work.token_ids is not None:
            self._share_prefix(req)
        if not work.sample:
            return
        if req.max_new_tokens == 0:  # only the logprobs of the next token were wanted
            self.finish(req, FinishReason(type="length", length=0))
            return
        req.output_ids.append(next_id)
        refusal = accept_token(req, next_id)
        if refusal is not None:
            self.finish(req, server_error(refusal))
            return
        stop = self._stop_checker.check(req)
        if stop is None:
            self._report_progress(req)
            return
        req.trim_ids, req.trim_text = stop.trim_ids, stop.trim_text
        self.finish(req, stop.reason)

    def _share_prefix(self, req: Req) -> None:
        self._cache.commit_prefix(req.handle, req.computed_keys())
        if req.num_computed >= req.num_fill:
            self._planner.shared.discard(req)

    # --- endings

    def finish(self, req: Req, reason: FinishReason) -> None:
        """End a request that holds a row; its slots are given back once nothing of it is in flight."""
        req.finish_reason = reason
        self._planner.drop(req)
        self._report(req)
        self._release_if_idle(req)

    def finish_waiting(self, req: Req, reason: FinishReason) -> None:
        """End a request that never got a row or lost it."""
        req.finish_reason = reason
        self._report(req)

    def _release_if_idle(self, req: Req) -> None:
        if req.num_in_flight == 0 and req.cache is not None:
            self._cache.close(req.cache, req.computed_keys(), insert=not req.is_tainted)
            req.cache = None

    # --- reports

    def take_outputs(self) -> BatchTokenOutput | None:
        """The news since the last call, or None."""
        if not self._outbox:
            return None
        outputs, self._outbox = self._outbox, []
        return BatchTokenOutput(outputs=outputs)

    def _report_progress(self, req: Req) -> None:
        if not req.stream:
            return
        interval = req.sampling_params.stream_interval or self._stream_interval
        fresh = len(req.output_ids) - req.num_sent
        if fresh >= interval or len(req.output_ids) == 1:
            self._report(req)

    def _report(self, req: Req) -> None:
        new_ids = req.output_ids[req.num_sent :]
        req.num_sent = len(req.output_ids)
        chunk, req.logprobs = req.logprobs, LogprobChunk()
        self._outbox.append(
            TokenOutput(
                rid=req.rid,
                new_ids=new_ids,
                prompt_tokens=req.prompt_len,
                completion_tokens=len(req.output_ids),
                cached_tokens=req.cached_tokens,
                retractions=req.retractions,
                finish_reason=req.finish_reason,
                trim_ids=req.trim_ids,
                trim_text=req.trim_text,
                logprobs=chunk if req.return_logprob else None,
                queue_time=max(req.admitted_ts - req.received_ts, 0.0),
            )
        )


def _no_token_reason(req: Req, is_nan: bool) -> str:
    if is_nan:
        return (
            f"the model produced NaN logits for output token {len(req.output_ids) + 1} (position {req.num_computed}); look for it in "
            "the weights, the dtype (try --dtype float32) and the kernels (try --attention-backend torch_native)"
        )
    reason = "the model produced NaN or infinite logits"
    return (
        reason if req.grammar is None else f"the grammar allows no further token here, or {reason}"
    )


def server_error(message: str) -> FinishReason:
    """The end of a request for which the server is to blame."""
    return FinishReason(
        type="abort", message=message, status_code=500, err_type="InternalServerError"
    )


def unavailable(message: str) -> FinishReason:
    """The end of a request that another attempt may well serve."""
    return FinishReason(
        type="abort", message=message, status_code=503, err_type="ServiceUnavailable"
    )


def _add_logprobs(req: Req, work: RowWork, row: RowLogprobs) -> None:
    if req.wants_input_logprobs and not req.input_logprobs_done:
        _add_input_logprobs(req, work, row)
    if work.sample and row.output is not None:
        _add_output_logprobs(req, row.output, row)


def _add_input_logprobs(req: Req, work: RowWork, row: RowLogprobs) -> None:
    """Entries for the prompt positions that this chunk predicts; position 0 has nothing before it."""
    chunk = req.logprobs
    # What precedes the first entry: nothing predicts position 0.
    first_entry = [None] if chunk.input_token is None and req.logprob_start_len == 0 else []
    first = work.start + work.input_logprob_start + 1  # position that the first row predicts
    targets = req.prompt_ids[first : work.start + work.num_tokens + 1]
    count = len(targets)  # the row of the last prompt token predicts an output instead
    tokens: list[tuple[float | None, int]] = [(None, req.prompt_ids[0]) for _ in first_entry]
    tokens += zip(row.input[:count], targets, strict=True)
    chunk.input_token = (chunk.input_token or []) + tokens
    if req.top_logprobs_num:
        tops = [list(zip(*top, strict=True)) for top in row.input_top[:count]]
        chunk.input_top = (chunk.input_top or []) + first_entry + tops
    if req.token_ids_logprob:
        given = [
            list(zip(values, req.token_ids_logprob, strict=True))
            for values in row.input_ids[:count]
        ]
        chunk.input_ids = (chunk.input_ids or []) + first_entry + given
    if work.start + work.num_tokens >= req.prompt_len:
        req.input_logprobs_done = True


def _add_output_logprobs(req: Req, logprob: float, row: RowLogprobs) -> None:
    chunk = req.logprobs
    chunk.output_token.append((logprob, row.output_token))
    if row.output_top is not None:
        values, ids = row.output_top
        chunk.output_top.append(list(zip(values, ids, strict=True)))
    if row.output_ids is not None and req.token_ids_logprob is not None:
        chunk.output_ids.append(list(zip(row.output_ids, req.token_ids_logprob, strict=True)))
