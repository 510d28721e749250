"""Requests that lose their row and are computed again: what they have got stays theirs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from scripted import ScriptedLaunch, ScriptedWorker, World, expected_output

from sglang.srt.managers import scheduler
from sglang.srt.managers.io_struct import BatchTokenOutput, TokenizedGenerateReq
from sglang.srt.managers.step_plan import RowLogprobs, StepPlan
from sglang.srt.sampling.sampling_params import SamplingParams

PROMPT, NUM_TOKENS = [1, 7, 8, 5], 12


class LogprobWorker(ScriptedWorker):
    """The logprob of a token is its own number below zero; the next one is second. That of a token asked for depends on the position."""

    def forward(self, plan: StepPlan) -> None:
        super().forward(plan)
        self._plan = plan

    def sample(self, masks) -> ScriptedLaunch:
        launched = super().sample(masks)
        for index, work in enumerate(self._plan.works):
            if not work.return_logprob:
                continue
            row = launched.outcome.logprobs[index] = RowLogprobs()
            if work.token_ids is not None and work.input_logprob_start < work.num_tokens:
                targets = [*work.token_ids[work.input_logprob_start + 1 :], work.next_prompt_token]
                row.input = [-float(token) for token in targets]
                row.input_top = [best(token) for token in targets if work.top_logprobs]
                wanted = work.token_ids_logprob
                row.input_ids = [of_given(token, wanted) for token in targets if wanted]
            if work.sample:
                row.output_token = launched.outcome.next_ids[index]
                row.output = -float(row.output_token)
                row.output_top = best(row.output_token) if work.top_logprobs else None
                if work.token_ids_logprob is not None:
                    row.output_ids = of_given(row.output_token, work.token_ids_logprob)
        return launched


def best(token: int) -> tuple[list[float], list[int]]:
    return [-float(token), -float(token + 1)], [token, token + 1]


def of_given(token: int, wanted: list[int]) -> list[float]:
    return [-1000.0 * token - given for given in wanted]


def ask(world: World, rid: str, *, stream: bool = False, **options) -> None:
    params = SamplingParams(max_new_tokens=NUM_TOKENS, ignore_eos=True)
    params.normalize(None)
    world.postbox.inbox.append(
        TokenizedGenerateReq(
            rid=rid, input_ids=PROMPT, sampling_params=params, stream=stream, **options
        )
    )


def retract(world: World, rid: str) -> None:
    world.scheduler._drain()
    world.planner.retract_one(world.scheduler.by_rid[rid])


def logprobs_of(world: World, rid: str) -> tuple[list, list]:
    """Of the prompt and of the output, all reports together."""
    chunks = [
        output.logprobs
        for message in world.postbox.sent
        if isinstance(message, BatchTokenOutput)
        for output in message.outputs
        if output.rid == rid
    ]
    given = [entry for chunk in chunks for entry in chunk.input_token or []]
    return given, [entry for chunk in chunks for entry in chunk.output_token]


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("start", [-1, 0, 2])
def test_logprobs_of_tokens_before_a_retraction_are_kept(start, stream, depth):
    """Whether those of the prompt (from `start` on) were asked for or not."""
    world = World(depth=depth, chunk_size=2)
    world.worker.__class__ = LogprobWorker
    ask(world, "one", stream=stream, return_logprob=True, logprob_start_len=start)
    for turns in (1, 4, 4):  # in the middle of the prompt, and of the output
        for _ in range(turns):
            world.turn()
        retract(world, "one")
    world.run_until_idle()
    tokens = expected_output(PROMPT, NUM_TOKENS, False)
    of_prompt, of_output = logprobs_of(world, "one")
    assert world.outputs()["one"][0] == tokens
    assert of_output == [(-float(token), token) for token in tokens]
    first = max(start, 1)
    asked = [] if start < 0 else [(-float(token), token) for token in PROMPT[first:]]
    assert of_prompt == ([(None, PROMPT[0])] if start == 0 else []) + asked


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("start", [-1, 0, 2])
def test_other_logprobs_of_tokens_before_a_retraction_are_kept(start, depth):
    """Those of the best tokens and of tokens that were asked for."""
    world, wanted = World(depth=depth, chunk_size=2), [8, 9]
    world.worker.__class__ = LogprobWorker
    options = {"top_logprobs_num": 2, "token_ids_logprob": wanted, "logprob_start_len": start}
    ask(world, "one", stream=True, return_logprob=True, **options)
    for turns in (1, 4):
        for _ in range(turns):
            world.turn()
        retract(world, "one")
    world.run_until_idle()
    chunks = [
        output.logprobs
        for message in world.postbox.sent
        if isinstance(message, BatchTokenOutput)
        for output in message.outputs
    ]

    def tops(tokens):
        return [[(-float(token), token), (-float(token + 1), token + 1)] for token in tokens]

    def given(tokens):
        return [[(-1000.0 * token - other, other) for other in wanted] for token in tokens]

    tokens = expected_output(PROMPT, NUM_TOKENS, False)
    assert [entry for chunk in chunks for entry in chunk.output_top] == tops(tokens)
    assert [entry for chunk in chunks for entry in chunk.output_ids] == given(tokens)
    of_prompt = [] if start < 0 else PROMPT[max(start, 1) :]
    nothing_before = [None] if start == 0 else []
    for name, expected in (("input_top", tops(of_prompt)), ("input_ids", given(of_prompt))):
        entries = [entry for chunk in chunks for entry in getattr(chunk, name) or []]
        assert entries == nothing_before + expected


def test_nobody_retracted_is_no_reason_to_expect_fewer_tokens():
    """The steps in flight may have ended enough requests; of none running the ratio would be zero."""
    world = World()
    before = world.planner.ratio.value
    assert world.planner.retract() == [] and world.planner.ratio.value == before > 0


def test_a_retracted_request_has_not_waited(monkeypatch):
    """The limit is for requests that nobody has begun to serve."""
    offset, real = [0.0], scheduler.time.monotonic
    clock = SimpleNamespace(monotonic=lambda: real() + offset[0])
    monkeypatch.setattr(scheduler, "time", clock)
    world = World(rows=1, waiting_timeout=30.0)
    ask(world, "runs")
    for _ in range(3):
        world.turn()
    ask(world, "waits")
    world.turn()
    offset[0] = 31.0
    retract(world, "runs")
    world.run_until_idle()
    outputs = world.outputs()
    assert outputs["runs"][0] == expected_output(PROMPT, NUM_TOKENS, False)
    assert outputs["waits"][1]["status_code"] == 503
