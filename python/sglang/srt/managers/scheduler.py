"""The scheduler: one loop that receives requests, plans steps, launches them and commits their results.

    receive -> plan(step n) -> launch -> commit(step n - depth) -> reply

It *has* a planner, an output processor and a worker; it knows nothing of tensors, text or HTTP. `depth` is the number of launched steps
that may be ahead of the last committed one: 0 is plain, 1 overlaps host work with the device. A step whose grammars wait for tokens of the
step before commits that one between its forward pass and its sampling.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque
from typing import Any, Protocol

from sglang.srt.constrained.grammar_manager import GrammarFuture, GrammarManager
from sglang.srt.managers.grammar_step import GrammarStep
from sglang.srt.managers.io_struct import (
    AbortReq,
    FinishReason,
    FlushCacheReply,
    FlushCacheReq,
    InternalStateReply,
    InternalStateReq,
    ProfileReply,
    ProfileReq,
    ShutdownReq,
    TokenizedGenerateReq,
)
from sglang.srt.managers.output_processor import OutputProcessor, server_error
from sglang.srt.managers.planner import PlannedStep, Planner
from sglang.srt.managers.request import Req
from sglang.srt.managers.scheduler_stats import SchedulerStats
from sglang.srt.managers.step_plan import StepError, StepPlan, StepResult
from sglang.srt.managers.step_profiler import StepProfiler
from sglang.srt.multimodal.intake import MediaIntake, RequestMedia
from sglang.srt.sampling.row_masks import RowMasks
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.utils.errors import RequestError

logger = logging.getLogger(__name__)

# Running time limits are looked at once in so many steps.
TIMEOUT_CHECK_INTERVAL = 16
# Seconds between two idle moments that are made use of.
PREPARE_INTERVAL = 0.05


class Launched(Protocol):
    """A step on its way; `result` waits for it."""

    def result(self) -> StepResult: ...


class Worker(Protocol):
    """Carries out plans in order. Both parts of a plan raise StepError when it failed and others may follow; anything else ends the
    scheduler."""

    def forward(self, plan: StepPlan) -> None:
        """Queue the forward pass. Earlier steps may still be on their way; `sample` must follow."""

    def sample(self, masks: RowMasks | None) -> Launched:
        """Queue the choice of the next tokens, from those that `masks` allow."""

    def prepare(self) -> bool:
        """Make use of an idle moment, for a tenth of a second or once for a second; False when there is no more to prepare."""

    def close(self) -> None: ...


class Mailbox(Protocol):
    """The scheduler's end of the sockets."""

    def receive(self, timeout: float) -> list[Any]: ...

    def send(self, message: Any) -> None: ...


@dataclasses.dataclass(frozen=True)
class SchedulerConfig:
    """The values the loop itself needs."""

    context_len: int
    eos_ids: frozenset[int]
    vocab_size: int
    depth: int = 0
    max_queued: int | None = None
    decode_log_interval: int = 40
    idle_wait: float = 1.0  # seconds
    grammar_poll_interval: float = 0.005  # seconds between looks at the compiler while nothing runs
    waiting_timeout: float = -1.0  # seconds; 0 and below: no limit
    running_timeout: float = -1.0
    retract_interval: int = 0  # fault injection: steps between forced retractions; 0: none
    is_audit_strict: bool = True  # False: an idle audit that fails is logged only
    audit_interval: int = 0  # steps between audits while requests run; 0: none


class Scheduler:
    """Drives the worker. Not thread-safe; everything happens in the thread that calls `step`."""

    def __init__(
        self,
        config: SchedulerConfig,
        planner: Planner,
        processor: OutputProcessor,
        worker: Worker,
        mailbox: Mailbox,
        grammars: GrammarManager,
        stats: SchedulerStats,
        media: MediaIntake | None = None,  # None: the model takes text only
        profiler: StepProfiler | None = None,
    ) -> None:
        self.config = config
        self.planner = planner
        self.cache = planner.cache
        self.processor = processor
        self.worker = worker
        self.mailbox = mailbox
        self.grammars = grammars
        self.stats = stats
        self.media = media
        self.profiler = profiler or StepProfiler()
        self.in_flight: deque[tuple[PlannedStep, Launched]] = deque()
        self.by_rid: dict[str, Req] = {}
        self.compiling: dict[
            str, tuple[Req, GrammarFuture]
        ] = {}  # requests whose grammar is being compiled
        self._stopping = False
        self._steps = 0
        self._audited = False
        self._idle_turns = 0  # without a message in between
        self._may_prepare = True

    # --- the loop

    @property
    def is_stopping(self) -> bool:
        return self._stopping

    def wait_for_work(self) -> None:
        """Take new messages; waits only when there is nothing to compute."""
        self.receive(0.0 if self.has_work else self._idle_wait())

    def step(self) -> bool:
        """One turn: plan, launch, commit, reply. False when there was nothing to do."""
        self._admit_compiled()
        self._expire()
        planned = self._plan()
        if planned is not None:
            self.profiler.begin_step()
            self._launch(planned)
        depth = self.config.depth if planned is not None else 0
        worked = planned is not None or bool(self.in_flight)
        while len(self.in_flight) > depth:
            self._commit_oldest()
        self._reply()
        if planned is not None:
            self.profiler.end_step()
            if self.config.audit_interval and self._steps % self.config.audit_interval == 0:
                self.check()
        if not worked:
            self._on_idle_turn()
        return worked

    def _launch(self, planned: PlannedStep) -> None:
        """A step that fails ends its requests; the tokens of earlier steps still count."""
        try:
            self.worker.forward(planned.plan)
            launched = self.worker.sample(self._fill_masks(planned))
        except StepError as error:
            logger.error("Step failed for %d requests: %s", len(planned.reqs), error)
            self._drain()
            self.processor.fail(planned, str(error))
        else:
            self.in_flight.append((planned, launched))

    def _fill_masks(self, planned: PlannedStep) -> RowMasks | None:
        """What grammars allow. The forward pass of `planned` is under way: only its sampling waits for tokens of the step before."""
        grammars = GrammarStep(planned)
        if grammars.lacks_tokens():
            self._drain()
        masks, failures = grammars.fill_masks(self.config.vocab_size)
        for req, reason in failures:
            self.processor.finish(req, server_error(reason))
        return masks

    @property
    def has_work(self) -> bool:
        return bool(self.in_flight or self.planner.num_with_rows or len(self.planner.waiting))

    def _idle_wait(self) -> float:
        if self.compiling:
            return self.config.grammar_poll_interval
        return PREPARE_INTERVAL if self._audited and self._may_prepare else self.config.idle_wait

    def _plan(self) -> PlannedStep | None:
        planner = self.planner
        self._retract_for_test()
        if planner.lacks_decode_slots():
            self._drain()
            self._report_retraction(planner.retract())
        planned = planner.plan()
        if planned is None and planner.num_with_rows and self.in_flight:
            self._drain()
            planned = planner.plan()
        if planned is not None:
            self._steps += 1
            self.stats.log_step(planned, planner, self.config.decode_log_interval)
        return planned

    def _retract_for_test(self) -> None:
        """Fault injection: take a row back every few steps although memory is left."""
        interval = self.config.retract_interval
        if not interval or self._steps % interval:
            return
        if len(self.planner.running) < 2:
            return
        self._steps += 1  # not again before a step has been planned
        self._drain()
        if len(self.planner.running) > 1:
            self.planner.retract_one(self.planner.running[-1])

    def _report_retraction(self, victims: list[Req]) -> None:
        if victims:
            logger.warning(
                "KV cache pool is full: took %d requests back to the queue (#running-req: %d)",
                len(victims),
                len(self.planner.running),
            )

    def _drain(self) -> None:
        while self.in_flight:
            self._commit_oldest()

    def _commit_oldest(self) -> None:
        planned, launched = self.in_flight.popleft()
        self.processor.commit(planned, launched.result())

    def _reply(self) -> None:
        batch = self.processor.take_outputs()
        if batch is None:
            return
        for output in batch.outputs:
            if output.finish_reason is not None:
                self.by_rid.pop(output.rid, None)
        self.mailbox.send(batch)

    def _on_idle_turn(self) -> None:
        """Audit once a whole wait has passed without a message: it takes milliseconds that the next request would wait. Then let the worker
        prepare."""
        if self._audited:
            if self._may_prepare and not self.compiling:
                self._may_prepare = self.worker.prepare()
            return
        self._idle_turns += 1
        self.planner.ratio.reset()
        if self._idle_turns > 1:
            self._audited = True
            self._audit()

    def _audit(self) -> None:
        try:
            self.check()
        except AssertionError as error:
            if self.config.is_audit_strict:
                raise
            logger.error("The idle scheduler found its own state wrong: %s", error)

    def check(self) -> None:
        """Audit all state; raises AssertionError naming what is wrong."""
        self.planner.check()
        known = len(self.planner.waiting) + self.planner.num_with_rows + len(self.compiling)
        pending = sum(1 for req in self.by_rid.values() if req.finish_reason is not None)
        assert known == len(self.by_rid) - pending, (
            f"{len(self.by_rid)} requests known, {known} queued or running, {pending} ending"
        )

    # --- intake

    def receive(self, timeout: float) -> None:
        """Take everything that has arrived; waits up to `timeout` seconds for the first message."""
        for message in self.mailbox.receive(timeout):
            self._audited = False
            self._idle_turns = 0
            self._dispatch(message)

    def _dispatch(self, message: Any) -> None:
        match message:
            case TokenizedGenerateReq():
                self._take(message)
            case AbortReq():
                self._abort(message)
            case FlushCacheReq():
                self.mailbox.send(self._flush(message))
            case InternalStateReq():
                state = self.stats.internal_state(self.planner, len(self.compiling))
                self.mailbox.send(InternalStateReply(call_id=message.call_id, state=state))
            case ProfileReq():
                self.mailbox.send(self._profile(message))
            case ShutdownReq():
                self._stopping = True
            case _:
                raise TypeError(f"unknown message {type(message).__name__}")

    def _take(self, source: TokenizedGenerateReq) -> None:
        room = min(self.config.context_len, self.cache.capacity) - len(source.input_ids)
        wanted = source.sampling_params.max_new_tokens
        req = Req(
            source,
            max_new_tokens=max(min(room if wanted is None else wanted, room), 0),
            eos_ids=self.config.eos_ids,
        )
        self.by_rid[req.rid] = req
        if room < 1:
            self._refuse(
                req,
                f"The prompt of {req.prompt_len} tokens does not fit into the KV cache pool of "
                f"{self.cache.capacity} tokens; raise --max-total-tokens or shorten the prompt",
                400,
            )
        elif self.config.max_queued is not None and self._num_queued >= self.config.max_queued:
            self._refuse(req, "The request queue is full.", 503)
        elif source.mm_inputs is not None and not self._take_media(req, source.mm_inputs):
            return
        elif req.sampling_params.has_grammar:
            self._compile(req)
        else:
            self.planner.add(req)

    def _take_media(self, req: Req, packed: bytes) -> bool:
        """False when the media do not fit; the request has been refused then."""
        if self.media is None:
            self._refuse(req, "This model takes text only; leave out images, video and audio", 400)
            return False
        try:
            media = self.media.take(packed, req.prompt_ids)
            req.max_new_tokens = min(req.max_new_tokens, self._room_beside(media, req.prompt_len))
            req.media = media
        except ValueError as error:
            self._refuse(req, str(error), 400)
        except (
            Exception
        ) as error:  # request boundary: a model file's pad_input_ids may raise anything
            logger.exception("pad_input_ids failed for request %s", req.rid)
            self._refuse(req, f"The media could not be taken ({type(error).__name__})", 500)
        return req.media is not None

    def _room_beside(self, media: RequestMedia, prompt_len: int) -> int:
        """Tokens that may follow a prompt with media. Raises ValueError when that is none."""
        context_len, capacity = self.config.context_len, self.cache.capacity
        if media.next_position >= context_len:
            raise ValueError(
                f"The media reach position {media.next_position} of a context of {context_len}"
            )
        if media.num_encoder_tokens > context_len:
            raise ValueError(
                f"The media take {media.num_encoder_tokens} encoder tokens; at most {context_len}, the context "
                "length, are allowed: send fewer or smaller ones"
            )
        room = capacity - self.cache.whole_pages(media.num_encoder_tokens) - prompt_len
        if room < 1:
            raise ValueError(
                f"The prompt of {prompt_len} tokens and its media of {media.num_encoder_tokens} do not fit into "
                f"the KV cache pool of {capacity} tokens; raise --max-total-tokens or send fewer media"
            )
        return min(room, context_len - media.next_position)

    @property
    def _num_queued(self) -> int:
        return len(self.planner.waiting) + len(self.compiling)

    def _refuse(self, req: Req, message: str, status: int) -> None:
        kind = {400: "BadRequestError", 503: "ServiceUnavailable"}.get(
            status, "InternalServerError"
        )
        reason = FinishReason(type="abort", message=message, status_code=status, err_type=kind)
        self.processor.finish_waiting(req, reason)

    def _compile(self, req: Req) -> None:
        kind, text = grammar_of(req.sampling_params)
        self.compiling[req.rid] = (req, self.grammars.submit(kind, text))

    def _admit_compiled(self) -> None:
        """Take over grammars that became ready; an invalid one ends its request only."""
        if not self.compiling:
            return
        self.grammars.poll()
        ready = [(req, future) for req, future in self.compiling.values() if future.done]
        for req, future in ready:
            del self.compiling[req.rid]
            try:
                req.grammar = future.matcher()
            except RequestError as error:
                self._refuse(req, str(error), error.status_code)
            else:
                self.planner.add(req)

    # --- endings from outside

    def _abort(self, message: AbortReq) -> None:
        reason = FinishReason(
            type="abort", message=message.message, status_code=message.status_code
        )
        for req in self._matching(message):
            logger.debug("Abort request %s: %s", req.rid, message.message)
            self._end(req, reason)

    def _matching(self, message: AbortReq) -> list[Req]:
        if message.abort_all:
            return list(self.by_rid.values())
        if message.exact:
            return [self.by_rid[message.rid]] if message.rid in self.by_rid else []
        if not message.rid:
            return []
        return [req for rid, req in self.by_rid.items() if rid.startswith(message.rid)]

    def _end(self, req: Req, reason: FinishReason) -> None:
        """End `req` now, or at the commit of its step in flight."""
        if req.finish_reason is not None:
            return
        if req.cache is not None and req.num_in_flight:
            req.abort_reason = reason
        elif req.cache is not None:
            self.processor.finish(req, reason)
        else:
            if self.compiling.pop(req.rid, None) is None:
                self.planner.waiting.remove(req)
            self.processor.finish_waiting(req, reason)

    def _expire(self) -> None:
        """End requests that waited or ran longer than the configured limits."""
        waiting_limit, running_limit = self.config.waiting_timeout, self.config.running_timeout
        now = time.monotonic()
        if waiting_limit > 0:
            oldest = self.planner.waiting.oldest()
            while oldest is not None and now - oldest.received_ts > waiting_limit:
                self._end(oldest, _timeout("waiting", waiting_limit))
                oldest = self.planner.waiting.oldest()
        if running_limit > 0 and self._steps % TIMEOUT_CHECK_INTERVAL == 0:
            for req in self.planner.running + self.planner.prefilling:
                if now - req.admitted_ts > running_limit:
                    self._end(req, _timeout("running", running_limit))

    def _flush(self, message: FlushCacheReq) -> FlushCacheReply:
        self._drain()
        busy = len(self.by_rid)
        if busy:
            text = f"{busy} requests are running or waiting; the cache is flushed only when idle"
            return FlushCacheReply(call_id=message.call_id, success=False, message=text)
        self.cache.flush()
        logger.info("Cache flushed")
        return FlushCacheReply(call_id=message.call_id, success=True)

    def _profile(self, message: ProfileReq) -> ProfileReply:
        try:
            if message.options is None:
                text = self.profiler.stop()
            else:
                text = self.profiler.start(message.options)
        except ValueError as error:
            return ProfileReply(call_id=message.call_id, success=False, message=str(error))
        logger.info("%s", text)
        return ProfileReply(call_id=message.call_id, success=True, message=text)


def grammar_of(params: SamplingParams) -> tuple[str, str]:
    """(kind, text) of the one constraint that `params` holds."""
    choices = {
        "json": params.json_schema,
        "regex": params.regex,
        "ebnf": params.ebnf,
        "structural_tag": params.structural_tag,
    }
    return next((kind, text) for kind, text in choices.items() if text is not None)


def _timeout(state: str, limit: float) -> FinishReason:
    return FinishReason(
        type="abort",
        message=f"The request was {state} for longer than {limit:g} seconds.",
        status_code=503,
        err_type="ServiceUnavailable",
    )
