"""Decides what the next step computes: which requests, how many tokens of each, in which slots.

Works on the host only and never waits for the device. Prefill goes before decode; a prompt longer than the chunk is computed in
pieces; with `mixed_chunk` decode rows ride along with a prefill step. Nothing here knows about text, sockets or tensors.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from sglang.srt.managers.request import Req
from sglang.srt.managers.schedule_policy import NewTokenRatio, SharedPrefixes, WaitingQueue
from sglang.srt.managers.step_plan import RowSetup, RowWork, StepMode, StepPlan
from sglang.srt.mem_cache.kv_cache_manager import KVCacheManager


@dataclasses.dataclass(frozen=True)
class PlannerConfig:
    """Limits of a step. `chunk_size` None: prompts are never cut."""

    max_running: int
    chunk_size: int | None
    max_prefill_tokens: int
    max_prefill_requests: int | None = None
    policy: str = "fcfs"
    mixed_chunk: bool = False
    conservativeness: float = 1.0


@dataclasses.dataclass
class PlannedStep:
    """A plan with the requests behind its works, and what the log line reports."""

    plan: StepPlan
    reqs: list[Req]
    num_new_seqs: int = 0
    num_cached_tokens: int = 0


class Planner:
    """Owns the waiting queue and the list of requests that hold a row."""

    def __init__(self, config: PlannerConfig, cache: KVCacheManager) -> None:
        self.config = config
        self.cache = cache
        self.waiting = WaitingQueue()
        self.prefilling: list[Req] = []  # hold a row, some positions not planned yet
        self.running: list[Req] = []  # prompt planned to its end
        self.ratio = NewTokenRatio(config.conservativeness)
        self.shared = SharedPrefixes()
        self.num_retracted = 0
        self._step_id = 0

    # --- membership

    def add(self, req: Req) -> None:
        self.waiting.append(req)

    def drop(self, req: Req) -> None:
        """Forget a request that holds a row (its cache handle is the caller's to close)."""
        self.shared.discard(req)
        (self.prefilling if req in self.prefilling else self.running).remove(req)

    @property
    def num_with_rows(self) -> int:
        return len(self.prefilling) + len(self.running)

    # --- planning

    def plan(self) -> PlannedStep | None:
        """The next step, or None when nothing can run. Call `retract` first while `lacks_decode_slots`."""
        step = self._plan_extend()
        if step is None:
            return self._plan_decode()
        if self.config.mixed_chunk:
            self._append_decode(step)
        return step

    def decoding(self) -> list[Req]:
        """Requests that want one more token, not counting tokens already in flight."""
        return [
            req
            for req in self.running
            if req.num_outputs_planned < req.max_new_tokens and req.abort_reason is None
        ]

    def lacks_decode_slots(self) -> bool:
        """True when the next decode step does not fit in the KV pool even after evicting everything evictable."""
        if len(self.running) * self.cache.page_size <= self.cache.num_available():
            return False  # one token takes at most one page
        reqs = self.decoding()
        needed = sum(self.cache.slots_needed(req.handle, 1) for req in reqs)
        return needed > self.cache.num_available()

    def retract(self) -> list[Req]:
        """Take rows back until one more decode step fits; nothing may be in flight.

        Requests with the fewest outputs go first: they lose the least work. At least one request stays.
        """
        victims: list[Req] = []
        order = sorted(self.running, key=lambda req: (len(req.output_ids), -req.prompt_len))
        while self.lacks_decode_slots() and len(self.running) + len(self.prefilling) > 1:
            victim = self.prefilling[-1] if self.prefilling else order.pop(0)
            self.retract_one(victim)
            victims.append(victim)
        if victims:  # not when the steps that were waited for have ended enough requests
            self.ratio.after_retraction(self.running)
        return victims

    def retract_one(self, req: Req) -> None:
        """Give back the row and slots of `req`; it waits at the head of the queue to be computed again."""
        assert req.num_in_flight == 0, f"request {req.rid} has a step in flight"
        self.drop(req)
        self.cache.close(req.handle, req.computed_keys())
        req.reset_for_retraction()
        self.waiting.prepend([req])
        self.num_retracted += 1

    # --- extend

    def _plan_extend(self) -> PlannedStep | None:
        works: list[RowWork] = []
        setups: list[RowSetup] = []
        step = PlannedStep(plan=self._new_plan("extend", works, setups), reqs=[])
        budget = _Budget(self.config, self.cache.page_size)
        for req in list(self.prefilling):
            if req.abort_reason is None and not self._extend_one(req, step, budget):
                break
        if not budget.is_spent and len(self.waiting):
            self._admit(step, budget)
        return step if works else None

    def _admit(self, step: PlannedStep, budget: _Budget) -> None:
        """Give rows to waiting requests while rows, memory and the token budget last."""
        cache = self.cache
        if self.num_with_rows >= self.config.max_running:
            return
        reserved = sum(self.ratio.reserve(req) for req in self.running + self.prefilling)
        reserved += sum(req.num_fill - req.num_planned for req in self.prefilling)
        for req in self.waiting.candidates(self.config.policy, cache):
            if budget.is_spent or self.num_with_rows >= self.config.max_running:
                return
            if self.shared.worth_waiting(req, cache):
                continue
            fill = req.prompt_len + len(req.output_ids)
            handle = cache.open(
                req.fill_keys(), req.extra_key, req.prefix_limit(), fill + req.num_remaining
            )
            if handle is None:
                return
            need = fill - handle.num_cached_at_open + self.ratio.reserve(req) + cache.page_size
            need += cache.whole_pages(req.num_encoder_tokens)
            alone = self.num_with_rows == 0
            if need + reserved > cache.num_available() and not alone:
                cache.close(handle, [], insert=False)
                return
            self.waiting.remove(req)
            req.open(handle)
            self.prefilling.append(req)
            self.shared.add(req)
            if not self._extend_one(req, step, budget):
                if req.needs_setup:  # not one token fitted: wait with the others
                    self._unadmit(req)
                return
            step.num_new_seqs += 1
            step.num_cached_tokens += handle.num_cached_at_open
            reserved += self.ratio.reserve(req)

    def _unadmit(self, req: Req) -> None:
        self.drop(req)
        self.cache.close(req.handle, [], insert=False)
        req.cache = None
        req.num_planned = req.num_computed = 0
        self.waiting.prepend([req])

    def _extend_one(self, req: Req, step: PlannedStep, budget: _Budget) -> bool:
        """Add the next chunk of `req`; False when the step is full or memory is short."""
        left = req.num_fill - req.num_planned
        num_tokens = budget.take(left)
        if num_tokens == 0:
            return False
        if req.media is not None and num_tokens < left:
            page_size = self.cache.page_size
            num_tokens = req.media.chunk(req.num_planned, num_tokens, left, page_size)
        if not self._take_encoder(req):
            return False
        slots = self.cache.extend(req.handle, num_tokens)
        if slots is None:
            return False
        if req.needs_setup:
            self._add_setup(req, step.plan)
        step.plan.works.append(req.make_work(num_tokens, slots))
        step.reqs.append(req)
        if not req.is_prefilling:
            self.prefilling.remove(req)
            self.running.append(req)
        return num_tokens == left

    def _take_encoder(self, req: Req) -> bool:
        """Slots for the encoder tokens of the request's media, which its first step writes all at once; False when memory is short."""
        count, handle = req.num_encoder_tokens, req.handle
        return not count or len(handle.encoder) > 0 or self.cache.take_encoder(handle, count)

    def _add_setup(self, req: Req, plan: StepPlan) -> None:
        """Bind the row to the request, and make every rank forget the media of the row's last request."""
        plan.setups.append(req.make_setup())
        media = None
        if req.media is not None:
            slots = req.handle.encoder[: req.num_encoder_tokens]
            media = req.media.sent_with(slots.tobytes())
        plan.media[req.handle.row] = media

    # --- decode

    def _plan_decode(self) -> PlannedStep | None:
        step = PlannedStep(plan=self._new_plan("decode", [], []), reqs=[])
        self._append_decode(step)
        if not step.reqs:
            return None
        self.ratio.decay()
        return step

    def _append_decode(self, step: PlannedStep) -> None:
        """One token for every running request that is not in the step already."""
        present = {id(req) for req in step.reqs}
        reqs = [req for req in self.decoding() if id(req) not in present]
        slots = self.cache.extend_many([req.handle for req in reqs]) if reqs else None
        if slots is None:
            return
        if step.reqs:
            step.plan.mode = "mixed"
        for req, slot in zip(reqs, np.split(slots, len(reqs)), strict=True):
            step.plan.works.append(req.make_work(1, slot))
            step.reqs.append(req)

    def _new_plan(self, mode: StepMode, works: list[RowWork], setups: list[RowSetup]) -> StepPlan:
        self._step_id += 1
        return StepPlan(step_id=self._step_id, mode=mode, works=works, setups=setups)

    # --- audit

    def check(self) -> None:
        """Every request with a row has a handle of the right length, and no row is used twice."""
        holders = self.prefilling + self.running
        rows = [req.handle.row for req in holders]
        assert len(set(rows)) == len(rows), f"rows used twice: {sorted(rows)}"
        for req in holders:
            assert req.handle.length >= req.num_planned >= req.num_computed, (
                f"request {req.rid}: {req.handle.length} slots, {req.num_planned} planned, "
                f"{req.num_computed} computed"
            )
        half = [req.rid for req in self.prefilling if req.abort_reason is None]
        assert len(half) <= 1, f"half-computed prompts that could block each other: {half}"
        for req in self.waiting:
            assert req.cache is None, f"waiting request {req.rid} holds a row"
        self.cache.check()


class _Budget:
    """Prompt tokens and requests that one extend step may still take."""

    def __init__(self, config: PlannerConfig, page_size: int) -> None:
        self._page_size = page_size
        self._may_cut = config.chunk_size is not None
        self._tokens = config.max_prefill_tokens
        if config.chunk_size is not None:
            self._tokens = min(self._tokens, config.chunk_size)
        self._tokens = max(self._tokens, page_size)  # a step can always move on
        self._requests = config.max_prefill_requests
        self._taken = 0

    @property
    def is_spent(self) -> bool:
        """True when not even one page of a prompt is left."""
        out_of_requests = self._requests is not None and self._taken >= self._requests
        return self._tokens < self._page_size or out_of_requests

    def take(self, wanted: int) -> int:
        """Tokens granted out of `wanted`; a cut falls on a page border. 0: nothing is left."""
        if self.is_spent:
            return 0
        granted = wanted
        if wanted > self._tokens:
            if self._may_cut:
                granted = self._tokens // self._page_size * self._page_size
            elif self._taken:
                return 0  # an uncut prompt beyond the limit runs alone
        self._taken += 1
        self._tokens -= granted
        return granted
