"""A scheduler on a scripted worker: no model, no tensors, but a KV memory whose content is checked.

The "model" is a hash chain. The KV cell of position p holds (chain before p, token at p, chain after p), so a step that reads a wrong,
stale or overwritten slot is noticed at once, and the tokens a request must get are known without any engine.
"""

from __future__ import annotations

import random

import numpy as np
from scripted_grammar import Grammars, ScriptedMatcher, allowed_by

from sglang.srt.constrained.base import mask_words
from sglang.srt.managers.io_struct import BatchTokenOutput, TokenizedGenerateReq
from sglang.srt.managers.output_processor import OutputProcessor
from sglang.srt.managers.planner import Planner, PlannerConfig
from sglang.srt.managers.scheduler import Scheduler, SchedulerConfig
from sglang.srt.managers.scheduler_stats import MemoryUsage, SchedulerStats
from sglang.srt.managers.step_plan import RowWork, StepPlan, StepResult
from sglang.srt.managers.stop_checker import StopChecker
from sglang.srt.mem_cache.kv_cache_manager import KVCacheManager
from sglang.srt.sampling.row_masks import RowMasks
from sglang.srt.sampling.sampling_params import SamplingParams

VOCAB = 97
EOS = 3
SEED_STATE = 12345


def advance(state: int, token: int) -> int:
    return (state * 1000003 + token * 7919 + 17) % (2**31 - 1)


def next_token(state: int, mask: np.ndarray | None = None) -> int:
    """The first token that is allowed, from the one that the state says on; -1 when none is."""
    first = state % VOCAB
    if mask is None:
        return first
    return min(allowed_by(mask), key=lambda token: (token - first) % VOCAB, default=-1)


def expected_output(prompt: list[int], max_new_tokens: int, eos: bool, matcher=None) -> list[int]:
    state = SEED_STATE
    for token in prompt:
        state = advance(state, token)
    output: list[int] = []
    while len(output) < max_new_tokens:
        mask = None
        if matcher is not None:
            matcher.fill_mask(mask := np.zeros(mask_words(VOCAB), np.int32))
        output.append(next_token(state, mask))
        if matcher is not None and (
            not matcher.accept_token(output[-1]) or matcher.is_terminated()
        ):
            break
        if eos and output[-1] == EOS:
            break
        state = advance(state, output[-1])
    return output


class ScriptedLaunch:
    def __init__(self, outcome: StepResult, number: int, events: list[tuple[str, int]]) -> None:
        self.outcome = outcome
        self._number = number
        self._events = events

    def result(self) -> StepResult:
        self._events.append(("result", self._number))
        return self.outcome


class ScriptedWorker:
    """Carries out plans on a simulated KV memory and fails on the first wrong read. `events`: (what happened, number of the plan from 1 on), in order."""

    def __init__(self, rows: int, width: int, num_slots: int) -> None:
        self.table = np.full((rows, width), -1, np.int64)
        self.cells: list[tuple[int, int, int] | None] = [None] * num_slots
        self.next_ids = [0] * rows
        self.plans: list[StepPlan] = []
        self.events: list[tuple[str, int]] = []
        self._begun: tuple[StepPlan, list[int]] | None = None
        self.num_computed = 0
        self.num_prepared, self.num_to_prepare = 0, 0

    def prepare(self) -> bool:
        self.num_prepared += 1
        return self.num_prepared < self.num_to_prepare

    def forward(self, plan: StepPlan) -> None:
        self.plans.append(plan)
        self.events.append(("forward", len(self.plans)))
        rows = [work.row for work in plan.works]
        assert len(set(rows)) == len(rows), "a row works twice in one step"
        self._begun = plan, [self._run(work) for work in plan.works]

    def sample(self, masks: RowMasks | None) -> ScriptedLaunch:
        assert self._begun is not None, "sampled twice"
        (plan, states), self._begun = self._begun, None
        self.events.append(("sample", len(self.plans)))
        by_row = {} if masks is None else dict(zip(masks.rows, masks.words, strict=True))
        assert by_row.keys() <= {work.row for work in plan.works if work.sample}
        result = StepResult(step_id=plan.step_id, next_ids=[-1] * len(states))
        for index, (work, state) in enumerate(zip(plan.works, states, strict=True)):
            if not work.sample:
                continue
            chosen = next_token(state, by_row.get(work.row))
            result.next_ids[index] = self.next_ids[work.row] = chosen
            result.bad_rows += [index] * (chosen < 0)
        return ScriptedLaunch(result, len(self.plans), self.events)

    def _run(self, work: RowWork) -> int:
        """The state behind the last token of `work`."""
        row, end = work.row, work.start + work.num_tokens
        if work.prefix_slots is not None:
            self.table[row, : work.start] = np.frombuffer(work.prefix_slots, np.int32)
        self.table[row, work.start : end] = np.frombuffer(work.new_slots, np.int32)
        tokens = work.token_ids if work.token_ids is not None else [self.next_ids[row]]
        assert len(tokens) == work.num_tokens
        state = self._read_prefix(row, work.start)
        for position, token in enumerate(tokens, work.start):
            before, state = state, advance(state, token)
            self.cells[self.table[row, position]] = (before, token, state)
        self.num_computed += work.num_tokens
        return state

    def _read_prefix(self, row: int, length: int) -> int:
        state = SEED_STATE
        for slot in self.table[row, :length]:
            cell = self.cells[slot]
            assert cell is not None and cell[0] == state, f"row {row} reads a wrong slot {slot}"
            state = cell[2]
        return state


class Postbox:
    def __init__(self) -> None:
        self.inbox: list = []
        self.sent: list = []

    def receive(self, timeout: float) -> list:
        taken, self.inbox = self.inbox, []
        return taken

    def send(self, message) -> None:
        self.sent.append(message)


class World:
    """A scheduler with everything around it, driven turn by turn."""

    def __init__(
        self,
        *,
        num_slots: int = 256,
        page_size: int = 1,
        rows: int = 8,
        width: int = 128,
        depth: int = 0,
        chunk_size: int | None = 16,
        policy: str = "fcfs",
        mixed_chunk: bool = False,
        prefix_cache: bool = True,
        max_queued: int | None = None,
        stream_interval: int = 1,
        tokenizer=None,
        **limits: float,  # further fields of SchedulerConfig
    ) -> None:
        cache = KVCacheManager(
            num_slots=num_slots,
            page_size=page_size,
            max_requests=rows,
            enable_prefix_cache=prefix_cache,
        )
        planner = Planner(
            PlannerConfig(
                max_running=rows,
                chunk_size=chunk_size,
                max_prefill_tokens=64,
                policy=policy,
                mixed_chunk=mixed_chunk,
            ),
            cache,
        )
        self._tokenizer = tokenizer
        checker = StopChecker(tokenizer=tokenizer, eos_ids=frozenset({EOS}), vocab_size=VOCAB)
        self.worker = ScriptedWorker(rows, width, num_slots + page_size)
        self.postbox = Postbox()
        self.scheduler = Scheduler(
            SchedulerConfig(
                context_len=width,
                eos_ids=frozenset({EOS}),
                vocab_size=VOCAB,
                depth=depth,
                max_queued=max_queued,
                **limits,
            ),
            planner,
            OutputProcessor(planner, checker, stream_interval),
            self.worker,
            self.postbox,
            Grammars(lambda text: ScriptedMatcher(text, VOCAB)),
            SchedulerStats(MemoryUsage(0, 0), rows),
        )
        self.cache = cache
        self.planner = planner

    def submit(self, rid: str, prompt: list[int], *, stream: bool = False, **params) -> None:
        extra_key = params.pop("extra_key", None)
        sampling = SamplingParams(**params)
        sampling.normalize(self._tokenizer)
        self.postbox.inbox.append(
            TokenizedGenerateReq(
                rid=rid,
                input_ids=prompt,
                sampling_params=sampling,
                stream=stream,
                extra_key=extra_key,
            )
        )

    def turn(self) -> bool:
        self.scheduler.receive(0.0)
        worked = self.scheduler.step()
        self.scheduler.check()
        return worked

    def run_until_idle(self, limit: int = 5000) -> None:
        for _ in range(limit):
            if not self.turn() and not self.postbox.inbox and not self.scheduler.has_work:
                return
        raise AssertionError("the scheduler does not come to rest")

    def outputs(self) -> dict[str, tuple[list[int], dict | None]]:
        """rid -> (all ids reported, finish reason)."""
        news: dict[str, tuple[list[int], dict | None]] = {}
        for message in self.postbox.sent:
            if not isinstance(message, BatchTokenOutput):
                continue
            for output in message.outputs:
                ids, reason = news.get(output.rid, ([], None))
                assert reason is None, f"{output.rid} reported after its end"
                reason = output.finish_reason.to_dict() if output.finish_reason else None
                news[output.rid] = (ids + output.new_ids, reason)
        return news


def random_prompt(rng: random.Random, families: list[list[int]], longest: int) -> list[int]:
    """A prompt that often begins like others do."""
    head = rng.choice(families)[: rng.randrange(0, 40)]
    tail = [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 12))]
    return (head + tail)[:longest]
