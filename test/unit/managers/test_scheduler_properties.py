"""Thousands of random events against the scheduler: every invariant after every step, every token equal to what it must be."""

from __future__ import annotations

import random

import pytest
from scripted import EOS, VOCAB, World, expected_output, random_prompt

from sglang.srt.managers.io_struct import AbortReq, FlushCacheReply, FlushCacheReq

SHAPES = [
    dict(),
    dict(depth=1),
    dict(page_size=4),
    dict(page_size=16, depth=1, num_slots=320),
    dict(mixed_chunk=True),
    dict(mixed_chunk=True, depth=1, page_size=4),
    dict(policy="lpm", depth=1),
    dict(prefix_cache=False, depth=1),
    dict(chunk_size=None),
    dict(num_slots=160, depth=1, rows=16),
    dict(num_slots=176, page_size=16, rows=8, mixed_chunk=True),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_random_events(shape, seed):
    rng = random.Random(seed * 7919 + len(str(shape)))
    world = World(**shape)
    families = [[rng.randrange(VOCAB) for _ in range(40)] for _ in range(3)]
    asked: dict[str, tuple[list[int], int, bool]] = {}
    aborted: set[str] = set()
    for event in range(350):
        kind = rng.random()
        if kind < 0.22:
            rid = f"r{event}"
            prompt = random_prompt(rng, families, 60)
            max_new, eos = rng.choice([0, 1, 2, 8, 25, 60]), rng.random() < 0.5
            world.submit(
                rid,
                prompt,
                stream=rng.random() < 0.5,
                max_new_tokens=max_new,
                ignore_eos=not eos,
                extra_key=rng.choice([None, None, "tenant"]),
            )
            asked[rid] = (prompt, max_new, eos)
        elif kind < 0.27 and asked:
            rid = rng.choice(list(asked))
            world.postbox.inbox.append(AbortReq(rid=rid, exact=True))
            aborted.add(rid)
        elif kind < 0.28:
            world.postbox.inbox.append(FlushCacheReq(call_id=str(event)))
        world.turn()
    world.run_until_idle()
    _check_outputs(world, asked, aborted)
    world.postbox.inbox.append(FlushCacheReq(call_id="end"))
    world.turn()
    reply = [m for m in world.postbox.sent if isinstance(m, FlushCacheReply)][-1]
    assert reply.success
    assert world.cache.num_available() == world.cache.capacity
    assert world.cache.num_used == 0


def _check_outputs(world, asked, aborted):
    outputs = world.outputs()
    assert set(outputs) == set(asked)
    for rid, (prompt, max_new, eos) in asked.items():
        ids, reason = outputs[rid]
        want = expected_output(prompt, max_new, eos)
        if reason["type"] == "abort":
            assert rid in aborted
            assert ids == want[: len(ids)]
        else:
            assert ids == want, rid
            ended_by_eos = eos and want and want[-1] == EOS and len(want) < max_new
            assert reason["type"] == ("stop" if ended_by_eos else "length")


def test_small_pool_forces_retraction_and_loses_nothing():
    world = World(num_slots=96, rows=8, depth=1)
    asked = {}
    for index in range(8):
        prompt = [index, 5, 6, 7, 8, 9, 10, 11]
        world.submit(f"r{index}", prompt, max_new_tokens=40, ignore_eos=True)
        asked[f"r{index}"] = (prompt, 40, False)
    world.planner.ratio.value = 0.0  # admit everyone: the pool must run dry
    world.run_until_idle()
    _check_outputs(world, asked, set())
    assert world.planner.num_retracted > 0


def test_requests_arriving_together_share_their_prefix():
    shared = [11 + i % 50 for i in range(64)]
    world = World(num_slots=1024, rows=16, chunk_size=64, width=256)
    for index in range(8):
        world.submit(f"r{index}", shared + [index, index + 1], max_new_tokens=2, ignore_eos=True)
    world.run_until_idle()
    prompt_tokens = world.worker.num_computed - 8  # one decode step each
    assert prompt_tokens <= 64 + 8 * 2 + 8
    outputs = world.outputs()
    assert all(
        outputs[f"r{i}"][0] == expected_output(shared + [i, i + 1], 2, False) for i in range(8)
    )


def test_retracted_request_beside_a_longer_prompt_that_begins_alike():
    """What the first has computed is longer than its prompt, and shorter than the other's."""
    shared = [11 + i % 50 for i in range(40)]
    world = World(num_slots=256, chunk_size=16)
    world.submit("retracted", shared, max_new_tokens=20, ignore_eos=True)
    world.submit("stays", [1, 2, 4], max_new_tokens=20, ignore_eos=True)
    for _ in range(10):
        world.turn()
    req = world.scheduler.by_rid["retracted"]
    assert len(req.output_ids) > 3
    world.submit("long", shared + [*range(33)], max_new_tokens=2, ignore_eos=True)
    world.turn()
    assert [r.rid for r in world.planner.prefilling] == ["long"]
    world.planner.retract_one(req)
    world.run_until_idle()
    assert world.outputs()["retracted"][0] == expected_output(shared, 20, False)


def test_queue_limit_refuses_with_503():
    world = World(rows=1, max_queued=2)
    for index in range(5):
        world.submit(f"r{index}", [1, 2, 4 + index], max_new_tokens=4, ignore_eos=True)
    world.run_until_idle()
    refused = [r for r, (_, reason) in world.outputs().items() if reason["type"] == "abort"]
    assert len(refused) == 3
    reason = world.outputs()[refused[0]][1]
    assert reason["status_code"] == 503 and reason["message"] == "The request queue is full."


def test_prompt_larger_than_the_pool_is_refused_alone():
    world = World(num_slots=32, width=128)
    world.submit("big", list(range(90)), max_new_tokens=4)
    world.submit("small", [1, 2, 4], max_new_tokens=4, ignore_eos=True)
    world.run_until_idle()
    outputs = world.outputs()
    assert outputs["big"][1]["status_code"] == 400
    assert outputs["small"][0] == expected_output([1, 2, 4], 4, False)


def test_outputs_stop_where_the_pool_ends():
    world = World(num_slots=33, width=128)
    world.submit("one", [1, 2, 4], max_new_tokens=None, ignore_eos=True)
    world.run_until_idle()
    ids, reason = world.outputs()["one"]
    assert reason == {"type": "length", "length": len(ids)} and len(ids) >= 16


@pytest.mark.parametrize("depth", [0, 1])
def test_stream_interval_groups_tokens(depth):
    world = World(depth=depth, stream_interval=4)
    world.submit("s", [1, 2, 4], stream=True, max_new_tokens=10, ignore_eos=True)
    world.run_until_idle()
    sizes = [len(o.new_ids) for m in world.postbox.sent for o in getattr(m, "outputs", [])]
    assert sizes == [1, 4, 4, 1]


def test_step_cost_does_not_depend_on_waiting_requests():
    """Counted in looked-at requests, not in seconds."""
    world = World(rows=1, num_slots=128)
    for index in range(2000):
        world.submit(f"r{index}", [1, 2, index % VOCAB], max_new_tokens=2, ignore_eos=True)
    world.scheduler.receive(0.0)
    looked_at = world.planner.waiting.candidates("fcfs", world.cache)
    assert len(looked_at) == 128
