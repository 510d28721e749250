"""What the front keeps of a request while the scheduler works on it, and how that becomes response dicts.

A `PendingCall` is one call of `generate_request`, with one `RequestState` per sample. The reader of the scheduler's socket only stores
news (`apply`); text is made when the caller's task renders an item, so a failure there harms that call alone.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from typing import Any

from sglang.srt.managers.detokenizer import Detokenizer
from sglang.srt.managers.io_struct import FinishReason, TokenizedGenerateReq, TokenOutput
from sglang.srt.managers.logprobs import LogprobRecord
from sglang.srt.managers.output_text import OutputText
from sglang.srt.utils.errors import RequestError


class ServiceError(Exception):
    """A request that failed for a reason that is not its own; `status_code` is the HTTP status to answer with."""

    def __init__(self, message: str, status_code: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.status_code = status_code

    def __reduce__(self) -> tuple[type[ServiceError], tuple[str, int]]:
        return type(self), (self.message, self.status_code)


class ClientDisconnected(ServiceError):
    """The caller went away; nobody reads the answer."""

    def __init__(
        self, message: str = "The client closed the connection.", status_code: int = 499
    ) -> None:
        super().__init__(message, status_code)


@dataclasses.dataclass(frozen=True)
class RenderOptions:
    """What of a response is the same for all samples of a call."""

    stream: bool = False
    incremental_ids: bool = False  # `--stream-output`
    text_in_logprobs: bool = False
    weight_version: str = "default"
    with_timings: bool = False


class RequestState:
    """One sample: what was asked, what has arrived, and how it is shown."""

    def __init__(
        self,
        rid: str,
        source: TokenizedGenerateReq,
        index: int | None,
        options: RenderOptions,
        detokenizer: Detokenizer | None,
    ) -> None:
        self.rid = rid
        self.index = index  # position in a batch; None for a single request
        self.prompt_len = len(source.input_ids)
        self.output_ids: list[int] = []
        self.logprobs = self._open_logprobs(source, options, detokenizer)
        self.finish_reason: FinishReason | None = None
        self.created_ts = time.monotonic()
        self.first_token_ts = 0.0
        self.finished_ts = 0.0
        self.last_token_ts = 0.0
        self._options = options
        self._last: TokenOutput | None = None
        self._num_shown = 0  # output ids that the text has seen
        self._num_sent_ids = 0
        self._text = self._open_text(source, detokenizer) if detokenizer is not None else None

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def completion_tokens(self) -> int:
        return self._last.completion_tokens if self._last is not None else 0

    @property
    def cached_tokens(self) -> int:
        return self._last.cached_tokens if self._last is not None else 0

    def apply(self, output: TokenOutput) -> None:
        """Store news of the scheduler; costs no more than copying it."""
        self._last = output
        self.output_ids += output.new_ids
        if self.logprobs is not None and output.logprobs is not None:
            self.logprobs.add(output.logprobs)
        self.last_token_ts = time.monotonic()
        if not self.first_token_ts:
            self.first_token_ts = self.last_token_ts
        if output.finish_reason is not None:
            self.finish_reason = output.finish_reason
            self.finished_ts = self.last_token_ts

    def render(self) -> dict[str, Any]:
        """The response as it stands. `text` is cumulative, and so is `output_ids` unless asked otherwise."""
        item: dict[str, Any] = {}
        if self._text is not None:
            self._update_text(self._text)
            item["text"] = self._text.visible
        start = self._num_sent_ids if self._options.incremental_ids else 0
        item["output_ids"] = self.output_ids[start:]
        self._num_sent_ids = len(self.output_ids)
        item["meta_info"] = self._meta_info()
        if self._options.stream and self.index is not None:
            item["index"] = self.index
        return item

    def raise_if_refused(self) -> None:
        """Raise what an abort with a status code means: 400 the caller's fault, anything else the server's."""
        reason = self.finish_reason
        if reason is None or reason.type != "abort" or reason.status_code is None:
            return
        message = reason.message or "The request was aborted."
        if reason.status_code < 500:
            raise RequestError(message, reason.status_code)
        raise ServiceError(message, reason.status_code)

    @staticmethod
    def _open_logprobs(
        source: TokenizedGenerateReq, options: RenderOptions, detokenizer: Detokenizer | None
    ) -> LogprobRecord | None:
        if not source.return_logprob:
            return None
        has_text = options.text_in_logprobs
        return LogprobRecord(
            source.top_logprobs_num,
            source.token_ids_logprob is not None,
            detokenizer.token_text if has_text and detokenizer is not None else None,
        )

    def _open_text(self, source: TokenizedGenerateReq, detokenizer: Detokenizer) -> OutputText:
        params = source.sampling_params
        stream = detokenizer.open(params.skip_special_tokens, params.spaces_between_special_tokens)
        return OutputText(
            stream,
            stop_strings=() if params.no_stop_trim else params.stop_strs,
            keep_pieces=source.return_logprob and self._options.text_in_logprobs,
        )

    def _update_text(self, text: OutputText) -> None:
        fresh = self.output_ids[self._num_shown :]
        self._num_shown = len(self.output_ids)
        if not self.is_finished:
            text.append(fresh)
        elif not text.is_final:
            assert self._last is not None, "a request ends with an output"
            text.finish(fresh, self._last.trim_ids, self._last.trim_text)

    def _meta_info(self) -> dict[str, Any]:
        last, options = self._last, self._options
        meta: dict[str, Any] = {
            "id": self.rid,
            "finish_reason": self.finish_reason.to_dict() if self.finish_reason else None,
            "prompt_tokens": last.prompt_tokens if last else self.prompt_len,
            "completion_tokens": self.completion_tokens,
            "cached_tokens": self.cached_tokens,
            "weight_version": options.weight_version,
            "total_retractions": last.retractions if last else 0,
        }
        if self.logprobs is not None:
            meta.update(self.logprobs.render(self._text.pieces if self._text is not None else None))
        if self.is_finished:
            meta["e2e_latency"] = self.finished_ts - self.created_ts
            if options.with_timings and last is not None:
                meta.update(self._timings(last))
        meta["response_sent_to_client_ts"] = time.time()
        return meta

    def _timings(self, last: TokenOutput) -> dict[str, float]:
        decode_time = self.finished_ts - self.first_token_ts
        timings = {
            "queue_time": last.queue_time,
            "inference_time": self.finished_ts - self.created_ts - last.queue_time,
        }
        if decode_time > 0 and last.completion_tokens > 1:
            timings["decode_throughput"] = (last.completion_tokens - 1) / decode_time
        return timings


class PendingCall:
    """All samples of one call, and the one future that its task sleeps on. Belongs to the loop it was made in."""

    def __init__(self, states: list[RequestState], stream: bool, log_metrics: bool = True) -> None:
        self.states = states
        self.log_metrics = log_metrics
        self.loop = asyncio.get_running_loop()
        self.num_unfinished = len(states)
        self.error: Exception | None = None
        self.stream = stream
        self._fresh: dict[
            str, RequestState
        ] = {}  # ordered: news is handed out in the order of arrival
        self._waiter: asyncio.Future[None] | None = None

    def notify(self, state: RequestState) -> None:
        """`state` has news."""
        if state.is_finished:
            self.num_unfinished -= 1
        if self.stream:
            self._fresh[state.rid] = state
            self.wake()
        elif self.num_unfinished == 0:
            self.wake()

    def fail(self, error: Exception) -> None:
        """End the call with `error`."""
        self.error = error
        if not self.loop.is_closed():
            self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Sleep until there is news (or until `wake`). Raises the error that ended the call."""
        if self.error is None and not self._has_news:
            self._waiter = self.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self.error is not None:
            raise self.error

    @property
    def _has_news(self) -> bool:
        return bool(self._fresh) if self.stream else self.num_unfinished == 0

    def next_fresh(self) -> RequestState | None:
        """The sample whose news has waited longest; it counts as shown now."""
        if not self._fresh:
            return None
        return self._fresh.pop(next(iter(self._fresh)))

    @property
    def unfinished_rids(self) -> list[str]:
        return [state.rid for state in self.states if not state.is_finished]


class DisconnectWatch:
    """Wakes a call every `interval` seconds so that its task can ask whether the client is still there."""

    def __init__(
        self, call: PendingCall, is_disconnected: Callable[[], Any], interval: float
    ) -> None:
        self._call = call
        self._is_disconnected = is_disconnected
        self._interval = interval
        self._is_due = False
        self._timer = call.loop.call_later(interval, self._tick)

    async def check(self) -> None:
        """Raises ClientDisconnected; asks at most once per interval."""
        if not self._is_due:
            return
        self._is_due = False
        if await self._is_disconnected():
            raise ClientDisconnected()
        self._timer = self._call.loop.call_later(self._interval, self._tick)

    def close(self) -> None:
        self._timer.cancel()

    def _tick(self) -> None:
        self._is_due = True
        self._call.wake()
