"""Steps that fail: their requests end with a reason, the tokens of earlier steps count, no slot is lost."""

from __future__ import annotations

import random

import pytest
from scripted import VOCAB, ScriptedLaunch, ScriptedWorker, World, expected_output, random_prompt
from scripted_grammar import ScriptedMatcher

from sglang.srt.managers.io_struct import AbortReq, BatchTokenOutput
from sglang.srt.managers.step_plan import StepError, StepPlan

REASON = "no memory for this step"


class FailingWorker:
    """Carries out plans like the scripted worker, but not those that `fails` chooses, of which it does the forward pass when `late`; flags
    rows that `nan_rows` chooses."""

    def __init__(
        self, inner: ScriptedWorker, fails=lambda plan: False, nan_rows=None, late: bool = False
    ) -> None:
        self._inner = inner
        self._fails = fails
        self._nan_rows = nan_rows or (lambda plan: [])
        self._late = late

    def forward(self, plan: StepPlan) -> None:
        self._plan, self._is_lost = plan, self._fails(plan)
        if self._is_lost and not self._late:
            raise StepError(REASON)
        self._inner.forward(plan)

    def sample(self, masks) -> ScriptedLaunch:
        launched = self._inner.sample(masks)
        if self._is_lost:
            raise StepError(REASON)
        launched.outcome.nan_rows = self._nan_rows(self._plan)
        return launched

    def prepare(self) -> bool:
        return False

    def close(self) -> None:
        pass


def failing(world: World, fails=lambda plan: False, nan_rows=None, late: bool = False) -> World:
    world.scheduler.worker = FailingWorker(world.worker, fails, nan_rows, late)
    return world


def ends(world: World) -> dict[str, dict | None]:
    return {rid: reason for rid, (_, reason) in world.outputs().items()}


@pytest.mark.parametrize("depth", [0, 1])
def test_failed_prefill_ends_its_request_and_no_other(depth):
    world = failing(World(depth=depth), lambda plan: plan.works[0].token_ids == [9, 9, 9])
    world.submit("runs", [1, 2, 4], max_new_tokens=20, ignore_eos=True)
    for _ in range(4):
        world.turn()
    world.submit("fails", [9, 9, 9], max_new_tokens=5)
    world.run_until_idle()
    reason = ends(world)["fails"]
    assert reason == {
        "type": "abort",
        "message": REASON,
        "status_code": 503,
        "err_type": "ServiceUnavailable",
    }
    assert world.outputs()["runs"][0] == expected_output([1, 2, 4], 20, False)
    assert world.cache.num_used == 0


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("grammar", [None, "length 20"])
@pytest.mark.parametrize("depth", [0, 1])
def test_failed_decode_keeps_the_tokens_of_earlier_steps(depth, grammar, late):
    fails = lambda plan: plan.works[0].num_outputs == 5  # noqa: E731
    world = failing(World(depth=depth), fails, late=late)
    for first in (1, 2):
        options = {"regex": grammar} if first == 1 else {}
        world.submit(f"r{first}", [first, 7], max_new_tokens=30, ignore_eos=True, **options)
    world.run_until_idle()
    for first in (1, 2):
        ids, reason = world.outputs()[f"r{first}"]
        assert reason["status_code"] == 503
        matcher = ScriptedMatcher(grammar, VOCAB) if grammar and first == 1 else None
        assert ids == expected_output([first, 7], 30, False, matcher)[:5]
    world.submit("later", [1, 7], max_new_tokens=4, ignore_eos=True)
    world.run_until_idle()
    assert world.outputs()["later"][0] == expected_output([1, 7], 4, False)


def test_failed_chunk_of_a_long_prompt():
    """The second of three chunks fails; what the first computed may be shared."""
    prompt = list(range(1, 41))
    seen: list[int] = []

    def fails(plan: StepPlan) -> bool:
        seen.append(plan.works[0].start)
        return seen == [0, 16]

    world = failing(World(chunk_size=16), fails)
    world.submit("fails", prompt, max_new_tokens=4)
    world.run_until_idle()
    assert ends(world)["fails"]["status_code"] == 503
    world.submit("again", prompt, max_new_tokens=4, ignore_eos=True)
    world.run_until_idle()
    assert world.outputs()["again"][0] == expected_output(prompt, 4, False)
    assert seen[2] == 16  # the first chunk came from the cache


def test_request_that_ended_in_the_step_before_is_not_failed():
    """The step after the last token is launched before that token is known."""
    prompts = ([first, 7] for first in range(VOCAB))
    prompt = next(p for p in prompts if 2 <= len(expected_output(p, 30, True)) < 20)
    want = expected_output(prompt, 30, True)
    failed: list[int] = []

    def fails(plan: StepPlan) -> bool:
        is_late = plan.works[0].num_outputs == len(want)
        failed.extend([plan.step_id] * is_late)
        return is_late

    world = failing(World(depth=1), fails)
    world.submit("ends", prompt, max_new_tokens=30)
    world.run_until_idle()
    ids, reason = world.outputs()["ends"]
    assert failed and ids == want and reason["type"] == "stop"
    assert world.cache.num_used == 0


@pytest.mark.parametrize("depth", [0, 1])
def test_nan_ends_one_row_and_its_computed_prefix_is_not_shared(depth):
    def rows(plan: StepPlan) -> list[int]:
        return [i for i, work in enumerate(plan.works) if work.token_ids == [9, 8, 7]]

    world = failing(World(depth=depth), nan_rows=rows)
    world.submit("good", [1, 2, 4], max_new_tokens=6, ignore_eos=True)
    world.submit("nan", [9, 8, 7], max_new_tokens=6, ignore_eos=True)
    world.run_until_idle()
    ids, reason = world.outputs()["nan"]
    assert ids == [] and reason["status_code"] == 500
    assert "NaN logits for output token 1 (position 3)" in reason["message"]
    assert world.outputs()["good"][0] == expected_output([1, 2, 4], 6, False)
    assert world.cache.match([9, 8, 7]) == 0
    assert world.cache.match([1, 2, 4]) == 3


PROMPT = list(range(1, 33))  # two chunks


def nan_at(tail: list[int]):
    """The first prefill whose tokens end with `tail` is flagged."""
    flagged: list[int] = []

    def rows(plan: StepPlan) -> list[int]:
        works = enumerate(plan.works)
        hits = [i for i, work in works if work.sample and (work.token_ids or [])[-4:] == tail]
        hits = hits[: 1 - len(flagged)]
        flagged.extend(hits)
        return hits

    return rows


def turns_until(world: World, done) -> None:
    for _ in range(60):
        if done():
            return
        world.turn()
    raise AssertionError("it did not come to that")


def cached_tokens(world: World, rid: str) -> int:
    batches = [batch for batch in world.postbox.sent if isinstance(batch, BatchTokenOutput)]
    outputs = [output for batch in batches for output in batch.outputs if output.rid == rid]
    return outputs[-1].cached_tokens


@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize("depth", [0, 1])
def test_nan_takes_the_earlier_chunks_out_of_the_cache(depth, page_size):
    world = failing(World(depth=depth, page_size=page_size), nan_rows=nan_at(PROMPT[-4:]))
    world.submit("nan", PROMPT, max_new_tokens=4, ignore_eos=True)
    turns_until(world, lambda: world.cache.match(PROMPT) == 16)  # the first chunk is shared
    world.run_until_idle()
    assert ends(world)["nan"]["status_code"] == 500
    assert world.cache.num_cached == world.cache.num_used == 0
    world.submit("again", PROMPT, max_new_tokens=4, ignore_eos=True)
    world.run_until_idle()
    assert cached_tokens(world, "again") == 0
    assert world.outputs()["again"][0] == expected_output(PROMPT, 4, False)
    assert world.cache.match(PROMPT) == 32


@pytest.mark.parametrize("depth", [0, 1])
def test_nan_leaves_what_came_from_the_cache(depth):
    world = failing(World(depth=depth), nan_rows=nan_at(PROMPT[-4:]))
    world.submit("before", PROMPT[:10], max_new_tokens=1)
    world.run_until_idle()
    world.submit("nan", PROMPT, max_new_tokens=4)
    world.run_until_idle()
    assert ends(world)["nan"]["status_code"] == 500
    assert world.cache.match(PROMPT) == world.cache.num_cached == 10


@pytest.mark.parametrize("depth", [0, 1])
def test_nan_hides_what_a_running_request_shares(depth):
    """The other reads it until it ends; no new request does, not even while it runs."""
    prompt, other = PROMPT[:24], [*PROMPT[:16], 50, 51]
    world = failing(World(depth=depth), nan_rows=nan_at(prompt[-4:]))
    world.submit("nan", prompt, max_new_tokens=4)
    turns_until(world, lambda: world.cache.match(prompt) == 16)
    world.submit("other", other, max_new_tokens=40, ignore_eos=True, stream=True)
    turns_until(world, lambda: ends(world).get("nan"))
    assert world.planner.running  # the other, on the chunk that the first had shared
    assert world.cache.match(prompt) == world.cache.match(other) == 0
    world.submit("again", prompt, max_new_tokens=4, ignore_eos=True)
    turns_until(world, lambda: ends(world).get("again"))
    assert cached_tokens(world, "again") == 0
    assert cached_tokens(world, "other") == 16 and ends(world)["other"] is None
    assert world.cache.match(other) == 16  # of the new request
    world.run_until_idle()
    assert world.outputs()["other"][0] == expected_output(other, 40, False)
    assert world.outputs()["again"][0] == expected_output(prompt, 4, False)
    assert world.cache.num_cached == 27 and world.cache.num_used == 0


def test_nan_after_a_retraction_takes_out_what_came_back_through_the_cache():
    flagged = lambda plan: [0] * (plan.works[0].num_outputs == 6)  # noqa: E731
    world = failing(World(), nan_rows=flagged)
    world.submit("nan", PROMPT, max_new_tokens=20, ignore_eos=True)
    turns_until(
        world, lambda: world.planner.running and len(world.planner.running[0].output_ids) == 4
    )
    world.planner.retract_one(world.planner.running[0])
    assert world.cache.match(PROMPT) == 32
    world.run_until_idle()
    assert ends(world)["nan"]["status_code"] == 500
    assert world.cache.num_cached == 0


def test_nan_of_a_request_that_is_being_aborted_is_not_shared():
    world = failing(World(depth=1), nan_rows=nan_at([9, 8, 7]))
    world.submit("aborted", [9, 8, 7], max_new_tokens=4)
    world.turn()
    world.postbox.inbox.append(AbortReq(rid="aborted"))
    world.run_until_idle()
    assert ends(world)["aborted"]["status_code"] != 500
    assert world.cache.num_cached == 0


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "shape", [dict(), dict(depth=1), dict(depth=1, page_size=4, mixed_chunk=True)], ids=str
)
def test_random_failures_lose_nothing(shape, seed, late):
    rng = random.Random(seed)
    world = failing(
        World(num_slots=192, **shape),
        lambda plan: rng.random() < 0.07,
        lambda plan: [
            i for i, work in enumerate(plan.works) if work.sample and rng.random() < 0.01
        ],
        late,
    )
    families = [[rng.randrange(VOCAB) for _ in range(40)] for _ in range(3)]
    asked: dict[str, tuple[list[int], int]] = {}
    for event in range(250):
        if rng.random() < 0.3:
            prompt, count = random_prompt(rng, families, 60), rng.choice([0, 1, 4, 20])
            world.submit(f"r{event}", prompt, max_new_tokens=count, ignore_eos=True)
            asked[f"r{event}"] = (prompt, count)
        world.turn()  # audits everything
    world.run_until_idle()
    outputs = world.outputs()
    assert set(outputs) == set(asked)
    assert {reason["type"] for _, reason in outputs.values()} == {"abort", "length"}
    for rid, (ids, reason) in outputs.items():
        want = expected_output(*asked[rid], False)
        assert ids == (want if reason["type"] == "length" else want[: len(ids)])
    assert world.cache.num_used == 0
