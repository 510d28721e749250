"""Time limits and what the environment settles once, when a scheduler is built."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from scripted import World, expected_output

from sglang.srt.constrained.grammar_manager import COMPILE_TIMEOUT
from sglang.srt.environ import envs
from sglang.srt.managers import scheduler, scheduler_builder


@pytest.fixture
def clock(monkeypatch):
    """`time.monotonic` of the scheduler, moved by hand."""
    now = SimpleNamespace(offset=0.0)
    real = scheduler.time.monotonic
    fake = SimpleNamespace(monotonic=lambda: real() + now.offset)
    monkeypatch.setattr(scheduler, "time", fake)
    return now


def test_waiting_too_long_is_503(clock):
    world = World(rows=1, waiting_timeout=30.0)
    world.submit("runs", [1, 2, 4], max_new_tokens=20, ignore_eos=True)
    world.submit("waits", [1, 2, 5], max_new_tokens=2, ignore_eos=True)
    for _ in range(3):
        world.turn()
    assert "waits" not in world.outputs()
    clock.offset = 31.0
    world.run_until_idle()
    outputs = world.outputs()
    assert outputs["waits"][1]["status_code"] == 503
    assert "waiting for longer than 30 seconds" in outputs["waits"][1]["message"]
    assert outputs["runs"][0] == expected_output([1, 2, 4], 20, False)


def test_the_worker_prepares_in_idle_moments_until_it_is_done():
    world = World()
    world.worker.num_to_prepare = 3
    world.submit("one", [1, 2, 4], max_new_tokens=5, ignore_eos=True)
    while world.turn():
        pass
    assert world.worker.num_prepared == 0, "not before a whole wait without a message"
    assert world.scheduler._idle_wait() == 1.0
    world.turn()
    assert world.worker.num_prepared == 0 and world.scheduler._idle_wait() < 0.1
    world.submit("two", [1, 2, 5], max_new_tokens=1, ignore_eos=True)
    while world.turn():
        pass
    assert world.worker.num_prepared == 0, "a message begins the wait anew"
    assert world.scheduler._idle_wait() == 1.0
    for _ in range(8):
        world.turn()
    assert world.worker.num_prepared == 3 and world.scheduler._idle_wait() == 1.0
    assert len(world.outputs()["two"][0]) == 1


def test_running_too_long_is_503(clock):
    world = World(running_timeout=30.0)
    world.submit("runs", [1, 2, 4], max_new_tokens=100, ignore_eos=True)
    for _ in range(2 * scheduler.TIMEOUT_CHECK_INTERVAL):
        world.turn()
    assert "runs" not in world.outputs(), "it has run for no time yet"
    clock.offset = 31.0
    world.run_until_idle()
    ids, reason = world.outputs()["runs"]
    assert reason["status_code"] == 503 and "running for longer" in reason["message"]
    assert 0 < len(ids) < 100


def test_without_limits_nothing_expires(clock):
    world = World(rows=1)
    for name in ("a", "b"):
        world.submit(name, [1, 2, 4], max_new_tokens=20, ignore_eos=True)
    world.turn()
    clock.offset = 1e6
    world.run_until_idle()
    assert [reason["type"] for _, reason in world.outputs().values()] == ["length", "length"]


def test_forced_retraction_changes_no_output():
    world = World(retract_interval=3)
    for first in (1, 2, 3):
        world.submit(f"r{first}", [first, 7, 8], max_new_tokens=20, ignore_eos=True)
    world.run_until_idle()
    assert world.planner.num_retracted > 0
    for first in (1, 2, 3):
        assert world.outputs()[f"r{first}"][0] == expected_output([first, 7, 8], 20, False)


def break_state(world):
    """A request that nobody queues or runs."""
    world.scheduler.by_rid["ghost"] = SimpleNamespace(finish_reason=None)


def idle_until_audited(world):
    for _ in range(3):
        world.scheduler.receive(0.0)
        world.scheduler.step()


def test_an_idle_scheduler_with_wrong_state_ends_or_says_so(caplog):
    strict, lenient = World(), World(is_audit_strict=False)
    for world in (strict, lenient):
        break_state(world)
    with pytest.raises(AssertionError, match="1 requests known, 0 queued"):
        idle_until_audited(strict)
    with caplog.at_level("ERROR"):
        idle_until_audited(lenient)
    assert [r.getMessage() for r in caplog.records] == [
        "The idle scheduler found its own state wrong: 1 requests known, 0 queued or running, 0 ending"
    ]


@pytest.mark.parametrize(("interval", "steps"), [(0, None), (1, 1), (3, 3)])
def test_audits_while_requests_run(interval, steps):
    world = World(audit_interval=interval)
    world.submit("r", [1, 2, 4], max_new_tokens=8, ignore_eos=True)
    world.scheduler.receive(0.0)
    break_state(world)
    for step in range(1, 6):
        if step == steps:
            with pytest.raises(AssertionError, match="2 requests known"):
                world.scheduler.step()
            return
        assert world.scheduler.step()
    assert steps is None


def test_steps_read_no_environment(monkeypatch):
    world = World()

    def forbidden(field):
        raise AssertionError(f"{field.name} was read in a step")

    monkeypatch.setattr(type(envs.SGLANG_REQ_WAITING_TIMEOUT), "get", forbidden)
    monkeypatch.setattr(type(envs.SGLANG_TEST_RETRACT), "get", forbidden)
    world.submit("r", [1, 2, 4], max_new_tokens=4, ignore_eos=True)
    world.scheduler.wait_for_work()
    world.run_until_idle()
    assert world.outputs()["r"][0] == expected_output([1, 2, 4], 4, False)


@pytest.mark.parametrize(
    ("from_tokenizer", "expected"), [(9, {2, 7, 9}), (2, {2, 7}), (None, {2, 7})]
)
def test_ids_that_end_a_text(from_tokenizer, expected):
    """Of config and generation config, which the model config has merged, and the tokenizer."""
    model_config = SimpleNamespace(hf_eos_token_id={2, 7})
    tokenizer = SimpleNamespace(eos_token_id=from_tokenizer)
    assert scheduler_builder.end_ids(model_config, tokenizer) == expected
    assert scheduler_builder.end_ids(model_config, None) == {2, 7}


@pytest.mark.parametrize(
    ("interval", "looks", "compile_timeout", "queue_timeout"),
    [(None, None, COMPILE_TIMEOUT, 50.0), (0.01, 300, 3.0, 3.0), (0.1, 6000, COMPILE_TIMEOUT, 600)],
)
def test_grammar_limits_come_from_the_environment(
    monkeypatch, interval, looks, compile_timeout, queue_timeout
):
    taken = {}

    def record(*args, **kwargs):
        taken.update(kwargs, args=args)

    monkeypatch.setattr(scheduler_builder, "GrammarManager", record)
    server_args = SimpleNamespace(
        constrained_json_disable_any_whitespace=False, constrained_json_whitespace_pattern=None
    )
    resolved = SimpleNamespace(grammar_backend="xgrammar")
    with (
        envs.SGLANG_GRAMMAR_POLL_INTERVAL.override(interval),
        envs.SGLANG_GRAMMAR_MAX_POLL_ITERATIONS.override(looks),
    ):
        scheduler_builder._grammars(server_args, resolved, "tokenizer", 64, frozenset({9, 2}))
    assert taken["args"] == ("tokenizer", 64, [2, 9], "xgrammar")
    assert taken["compile_timeout"] == pytest.approx(compile_timeout)
    assert taken["queue_timeout"] == pytest.approx(queue_timeout)
