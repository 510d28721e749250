"""Who is looked at first, who waits for whom, and how much memory is kept back for those who run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from scripted import EOS, World, expected_output

from sglang.srt.environ import envs
from sglang.srt.managers.schedule_policy import NewTokenRatio
from sglang.srt.managers.step_plan import SamplingSpec

SHARED = [11 + i % 50 for i in range(33)]


def waiting(world: World, prompts: dict[str, list[int]], **params) -> None:
    """Requests in the queue, in this order."""
    for rid, prompt in prompts.items():
        world.submit(rid, prompt, max_new_tokens=2, ignore_eos=True, **params)
    world.scheduler.receive(0.0)


# --- order


@pytest.mark.parametrize(
    ("policy", "order"), [("fcfs", ["new", "short", "long", "last"]), ("lpm", None)]
)
def test_longest_cached_prefix_goes_first_if_the_policy_says_so(policy, order):
    world = World(policy=policy)
    world.submit("before", SHARED, max_new_tokens=1)
    world.run_until_idle()
    prompts = {"new": [5, 6], "short": SHARED[:9], "long": SHARED[:20], "last": [5, 7]}
    waiting(world, prompts)
    found = [req.rid for req in world.planner.waiting.candidates(policy, world.cache)]
    assert found == (order or ["long", "short", "new", "last"])
    world.run_until_idle()
    for rid, prompt in prompts.items():
        assert world.outputs()[rid][0] == expected_output(prompt, 2, False)


# --- shared beginnings


def test_a_request_waits_for_a_prompt_in_progress_that_begins_alike():
    world = World(chunk_size=64)
    waiting(world, {"first": [*SHARED[:32], 1], "second": [*SHARED[:32], 2]})
    world.turn()
    assert [work.num_tokens for work in world.worker.plans[-1].works] == [33]
    world.turn()
    assert [work.num_tokens for work in world.worker.plans[-1].works] == [1]


@pytest.mark.parametrize("case", ["shorter by one", "other key"])
def test_what_shares_too_little_does_not_wait(case):
    world = World(chunk_size=64)
    if case == "other key":
        waiting(world, {"first": SHARED})
        waiting(world, {"second": SHARED}, extra_key="tenant")
    else:
        waiting(world, {"first": [*SHARED[:31], 1, 1], "second": [*SHARED[:31], 2, 2]})
    world.turn()
    assert len(world.worker.plans[-1].works) == 2


# --- memory kept back


def some_req(num_outputs: int = 0, max_new_tokens: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        output_ids=[1] * num_outputs,
        max_new_tokens=max_new_tokens,
        num_remaining=max_new_tokens - num_outputs,
    )


@pytest.fixture
def ratio_settings():
    with (
        envs.SGLANG_INIT_NEW_TOKEN_RATIO.override(0.5),
        envs.SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR.override(0.2),
        envs.SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS.override(4),
        envs.SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION.override(100),
        envs.SGLANG_RETRACT_DECODE_STEPS.override(10),
    ):
        yield


def test_ratio_decays_to_its_minimum_and_is_reset(ratio_settings):
    ratio = NewTokenRatio(1.0)
    values = []
    for _ in range(6):
        values.append(ratio.value)
        ratio.decay()
    assert values == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0.1])
    ratio.reset()
    assert ratio.value == 0.5


def test_ratio_is_never_above_one(ratio_settings):
    ratio = NewTokenRatio(8.0)
    assert ratio.value == 1.0
    ratio.after_retraction([some_req(num_outputs=50, max_new_tokens=50)])
    assert ratio.value == 1.0


def test_reserve_is_a_share_of_what_remains(ratio_settings):
    ratio = NewTokenRatio(1.0)
    assert ratio.reserve(some_req(num_outputs=3, max_new_tokens=44)) == 20
    assert ratio.reserve(some_req(max_new_tokens=10**6)) == 50


def test_after_a_retraction_the_ratio_fits_what_was_produced(ratio_settings):
    ratio = NewTokenRatio(1.0)
    survivors = [some_req(num_outputs=6, max_new_tokens=60), some_req(4, 39)]
    ratio.after_retraction(survivors)
    assert ratio.value == pytest.approx((6 + 4 + 2 * 10) / 100)


def test_ratio_falls_with_decode_steps_and_is_careful_again_after_a_rest():
    world = World()
    ratio = world.planner.ratio
    first = ratio.value
    world.submit("one", [1, 2, 4], max_new_tokens=10, ignore_eos=True)
    for _ in range(5):
        world.turn()
    assert ratio.value < first
    world.run_until_idle()
    assert ratio.value == first


# --- admission and retraction


def test_nobody_is_retracted_while_the_last_page_is_enough():
    """Of two requests one needs a page, and one is left."""
    world = World(num_slots=24, page_size=4, prefix_cache=False)
    world.planner.ratio.value = 0.0
    world.submit("short", [1, 2, 4], max_new_tokens=6, ignore_eos=True)
    world.submit("long", [1, 2, 4, 5, 6], max_new_tokens=8, ignore_eos=True)
    world.run_until_idle()
    assert world.planner.num_retracted == 0
    assert world.outputs()["long"][0] == expected_output([1, 2, 4, 5, 6], 8, False)


def test_what_a_half_computed_prompt_still_needs_is_not_given_to_others():
    world = World(num_slots=27, chunk_size=4, mixed_chunk=True, prefix_cache=False)
    world.planner.ratio.value = 0.0
    world.submit("runs", [1, 2, 4], max_new_tokens=20, ignore_eos=True)
    world.submit("half", list(range(20)), max_new_tokens=2, ignore_eos=True)
    for _ in range(5):
        world.turn()
    (half,) = world.planner.prefilling
    assert half.num_fill - half.num_planned == 3 and world.cache.num_available() == 2
    world.submit("small", [7], max_new_tokens=1, ignore_eos=True)
    world.turn()
    assert len(world.worker.plans[-1].works) == 1 and len(world.planner.waiting) == 1
    world.run_until_idle()
    assert world.outputs()["half"][0] == expected_output(list(range(20)), 2, False)
    assert world.outputs()["small"][0] == expected_output([7], 1, False)


def test_only_as_many_are_retracted_as_the_next_step_needs():
    world = World(num_slots=41, prefix_cache=False)
    world.planner.ratio.value = 0.0
    for first in range(4):
        prompt = [first, 5, 6, 7, 8, 9]
        world.submit(f"r{first}", prompt, max_new_tokens=8, ignore_eos=True)
    while not world.planner.num_retracted:
        world.turn()
    assert world.planner.num_retracted == 1 and len(world.planner.running) == 3
    world.run_until_idle()
    for first in range(4):
        prompt = [first, 5, 6, 7, 8, 9]
        assert world.outputs()[f"r{first}"][0] == expected_output(prompt, 8, False)


@pytest.mark.parametrize("mixed_chunk", [False, True])
def test_modes_of_steps(mixed_chunk):
    world = World(mixed_chunk=mixed_chunk)
    world.submit("one", [1, 2, 4], max_new_tokens=4, ignore_eos=True)
    for _ in range(2):
        world.turn()
    world.submit("two", [1, 2, 5], max_new_tokens=1, ignore_eos=True)
    world.turn()
    modes = [plan.mode for plan in world.worker.plans]
    assert modes == ["extend", "decode", "mixed" if mixed_chunk else "extend"]
    assert len(world.worker.plans[-1].works) == 1 + mixed_chunk


def test_a_prompt_of_a_whole_chunk_is_not_cut():
    world = World(page_size=4, chunk_size=18)
    waiting(world, {"fits": list(range(18)), "longer": list(range(20, 39))})
    for _ in range(3):
        world.turn()
    assert [plan.num_tokens for plan in world.worker.plans] == [18, 16, 3]


# --- what a plan says of a request


def test_slots_of_the_prefix_are_sent_once():
    world = World(chunk_size=4)
    world.submit("before", [1, 2, 4, 5, 6, 7], max_new_tokens=3, ignore_eos=True)
    world.run_until_idle()
    works = [work for plan in world.worker.plans for work in plan.works]
    assert [work.prefix_slots for work in works] == [None] * 4
    world.submit("again", [1, 2, 4, 5, 6, 7, 8], max_new_tokens=3, ignore_eos=True)
    world.run_until_idle()
    first, *others = [work for plan in world.worker.plans[4:] for work in plan.works]
    assert len(first.prefix_slots) == 4 * first.start == 24
    assert [work.prefix_slots for work in others] == [None] * 2


def test_sampling_parameters_reach_the_worker():
    world = World()
    given = {
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 7,
        "min_p": 0.125,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "repetition_penalty": 1.5,
        "min_new_tokens": 2,
    }
    more = {"sampling_seed": 11, "logit_bias": {"5": 1.5}, "stop_token_ids": [9]}
    world.submit("all", [1, 2, 4], max_new_tokens=3, **given, **more)
    world.submit("none", [1, 2, 5], max_new_tokens=3)
    world.turn()
    first, second = (setup.sampling for setup in world.worker.plans[0].setups)
    bias = {5: 1.5}
    assert first == SamplingSpec(**given, seed=11, logit_bias=bias, stop_ids=[EOS, 9])
    assert second == SamplingSpec()


# --- audit


def _share_a_row(first, second, waits):
    second.cache.row = first.cache.row


def _plan_beyond_the_slots(first, second, waits):
    first.num_planned = first.cache.length + 1


def _compute_beyond_the_plan(first, second, waits):
    first.num_computed = first.num_planned + 1


def _give_a_row_to_one_who_waits(first, second, waits):
    waits.cache = first.cache


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_share_a_row, "rows used twice"),
        (_plan_beyond_the_slots, "request a: . slots, . planned"),
        (_compute_beyond_the_plan, "request a: . slots, . planned, . computed"),
        (_give_a_row_to_one_who_waits, "waiting request c holds a row"),
    ],
)
def test_audit_names_the_fault(damage, words):
    world = World(rows=2)
    waiting(world, {"a": [1, 2, 4], "b": [1, 2, 5], "c": [1, 2, 6]})
    world.scheduler.step()
    world.scheduler.check()
    damage(*(world.scheduler.by_rid[rid] for rid in "abc"))
    with pytest.raises(AssertionError, match=words):
        world.planner.check()


def test_audit_sees_half_computed_prompts_that_could_block_each_other():
    world = World(chunk_size=16)
    waiting(world, {"a": list(range(40)), "b": [1, 2, 5]})
    world.scheduler.step()
    (half,) = world.planner.prefilling
    assert half.rid == "a"
    world.planner.check()
    other = world.scheduler.by_rid["b"]
    world.planner.waiting.remove(other)
    other.open(world.cache.open([1, 2, 5]))
    world.planner.prefilling.append(other)
    with pytest.raises(AssertionError, match=r"could block each other: \['a', 'b'\]"):
        world.planner.check()


def test_audit_counts_requests():
    world = World()
    waiting(world, {"a": [1, 2, 4]})
    world.scheduler.check()
    world.planner.waiting.remove(world.scheduler.by_rid["a"])
    with pytest.raises(AssertionError, match="1 requests known, 0 queued or running, 0 ending"):
        world.scheduler.check()


def test_log_line_of_a_prefill_step(caplog):
    world = World(num_slots=201, rows=2, chunk_size=64)
    world.submit("before", list(range(10)), max_new_tokens=1, ignore_eos=True)
    world.run_until_idle()
    prompts = {"a": [*range(9), 50], "b": [1, 2, 4], "c": [1, 2, 5]}
    waiting(world, prompts)
    caplog.clear()
    with caplog.at_level("INFO", logger="sglang.srt.managers.scheduler_stats"):
        world.turn()
    assert caplog.messages == [
        "Prefill batch. #new-seq: 2, #new-token: 4, #cached-token: 9, token usage: 0.07, "
        "#running-req: 2, #queue-req: 1"
    ]


def test_log_line_of_decode_steps(caplog):
    world = World(num_slots=201, decode_log_interval=3)
    world.submit("a", [1, 2, 4], max_new_tokens=7, ignore_eos=True)
    with caplog.at_level("INFO", logger="sglang.srt.managers.scheduler_stats"):
        world.run_until_idle()
    lines = [line for line in caplog.messages if line.startswith("Decode batch.")]
    assert len(lines) == 2
    assert lines[0].startswith("Decode batch. #running-req: 1, #token: 6, token usage: 0.03, ")
    assert lines[0].endswith("#queue-req: 0") and "cuda graph: False" in lines[0]
    assert world.scheduler.stats.last_gen_throughput > 0
