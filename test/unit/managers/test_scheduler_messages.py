"""Messages of the front to a scheduler, and how long it waits for them."""

from __future__ import annotations

import numpy as np
import pytest
from scripted import World, expected_output

from sglang.srt.managers.io_struct import (
    AbortReq,
    BatchTokenOutput,
    FlushCacheReply,
    FlushCacheReq,
    InternalStateReply,
    InternalStateReq,
    ShutdownReq,
    TokenizedGenerateReq,
)
from sglang.srt.managers.step_plan import RowMedia
from sglang.srt.multimodal.intake import RequestMedia
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.utils.errors import RequestError

PROMPT = [1, 2, 4]


def with_requests(*rids: str, **shape) -> World:
    """They run or wait, each with some tokens already where there is a row for it."""
    world = World(**shape)
    for rid in rids:
        world.submit(rid, PROMPT, max_new_tokens=20, ignore_eos=True)
    for _ in range(3):
        world.turn()
    return world


def ends(world: World) -> dict[str, str | None]:
    return {rid: reason and reason["type"] for rid, (_, reason) in world.outputs().items()}


def replies(world: World, kind: type) -> list:
    return [message for message in world.postbox.sent if isinstance(message, kind)]


# --- waiting


def test_waits_only_when_there_is_nothing_to_compute():
    world, timeouts = World(grammar_poll_interval=0.25, idle_wait=3.0), []
    receive = world.postbox.receive
    world.postbox.receive = lambda timeout: (timeouts.append(timeout), receive(timeout))[1]
    scheduler = world.scheduler
    scheduler.wait_for_work()
    world.submit("one", PROMPT, max_new_tokens=2, ignore_eos=True)
    scheduler.wait_for_work()  # takes it
    assert list(scheduler.by_rid) == ["one"]
    scheduler.wait_for_work()
    world.run_until_idle()
    world.submit("bound", PROMPT, max_new_tokens=2, regex="length 1")
    scheduler.wait_for_work()
    scheduler.wait_for_work()  # its grammar is being compiled
    assert timeouts[:3] == [3.0, 3.0, 0.0] and timeouts[-2:] == [3.0, 0.25]


def test_shutdown():
    world = World()
    assert not world.scheduler.is_stopping
    world.postbox.inbox.append(ShutdownReq())
    world.turn()
    assert world.scheduler.is_stopping


def test_unknown_message_is_named():
    world = World()
    world.postbox.inbox.append("hello")
    with pytest.raises(TypeError, match="unknown message str"):
        world.turn()


def test_internal_state_counts_what_runs_and_waits():
    world = with_requests("a", "b", "c", rows=2, num_slots=101)
    world.submit("bound", PROMPT, max_new_tokens=2, regex="length 1")
    world.postbox.inbox.append(InternalStateReq(call_id="7"))
    world.scheduler.receive(0.0)
    (reply,) = replies(world, InternalStateReply)
    assert reply.call_id == "7"
    state = reply.state
    assert state["num_running_reqs"] == 2 and state["utilization"] == 1.0
    assert (state["num_queue_reqs"], state["num_grammar_queue_reqs"]) == (2, 1)
    assert state["num_used_tokens"] == world.cache.num_used > 0
    assert state["max_total_num_tokens"] == state["memory_usage"]["token_capacity"] == 100
    assert state["token_usage"] == world.cache.num_used / 100
    assert state["cache_hit_rate"] == 0.0 and state["num_retracted_reqs"] == 0


def test_cache_hit_rate_is_the_share_of_prompt_tokens():
    world = World()
    for rid in ("first", "second"):
        world.submit(rid, list(range(10, 20)), max_new_tokens=1, ignore_eos=True)
        world.run_until_idle()
    world.postbox.inbox.append(InternalStateReq(call_id="7"))
    world.turn()
    (reply,) = replies(world, InternalStateReply)
    assert reply.state["cache_hit_rate"] == 9 / 20  # one token is always computed


# --- aborts


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize(
    ("message", "ended"),
    [
        (AbortReq(rid="job"), {"job_1", "job_2", "job_3"}),
        (AbortReq(rid="job_2", exact=True), {"job_2"}),
        (AbortReq(rid="job", exact=True), set()),
        (AbortReq(rid="none"), set()),
        (AbortReq(), set()),
        (AbortReq(abort_all=True), {"job_1", "job_2", "job_3", "other"}),
    ],
)
def test_abort_ends_those_it_names_and_no_other(message, ended, depth):
    """Of four, two run and two wait."""
    world = with_requests("job_1", "other", "job_2", "job_3", rows=2, depth=depth)
    world.postbox.inbox.append(message)
    world.run_until_idle()
    assert {rid for rid, kind in ends(world).items() if kind == "abort"} == ended
    for rid in {"job_1", "other", "job_2", "job_3"} - ended:
        assert world.outputs()[rid][0] == expected_output(PROMPT, 20, False)
    assert world.cache.num_used == 0 and not world.scheduler.by_rid


def test_abort_says_what_its_sender_said():
    world = with_requests("runs")
    world.postbox.inbox.append(AbortReq(rid="runs", message="enough", status_code=418))
    world.run_until_idle()
    ids, reason = world.outputs()["runs"]
    assert reason["message"] == "enough" and reason["status_code"] == 418
    assert ids == expected_output(PROMPT, 20, False)[: len(ids)] != []


def test_abort_together_with_the_refused_request_that_it_means():
    world = World(num_slots=32)
    world.submit("long", list(range(60)), max_new_tokens=1)
    world.postbox.inbox += [AbortReq(rid="long"), AbortReq(abort_all=True)]
    world.run_until_idle()
    assert world.outputs()["long"][1]["status_code"] == 400


def test_abort_while_the_grammar_is_compiled():
    world = World()
    world.submit("bound", PROMPT, max_new_tokens=2, regex="length 1")
    world.postbox.inbox.append(AbortReq(rid="bound"))
    world.run_until_idle()
    assert ends(world) == {"bound": "abort"} and not world.scheduler.compiling


# --- requests that are refused


def test_grammar_that_cannot_be_compiled_ends_its_request_only():
    world = World()

    def refuse(text):
        raise RequestError("no such grammar", 418)

    world.scheduler.grammars._make = refuse
    world.submit("bound", PROMPT, max_new_tokens=2, regex="length 1")
    world.submit("free", PROMPT, max_new_tokens=4, ignore_eos=True)
    world.run_until_idle()
    reason = world.outputs()["bound"][1]
    assert (reason["message"], reason["status_code"]) == ("no such grammar", 418)
    assert world.outputs()["free"][0] == expected_output(PROMPT, 4, False)


def test_grammars_that_are_compiled_count_for_the_limit_of_the_queue():
    world = World(max_queued=1)
    world.submit("bound", PROMPT, max_new_tokens=2, regex="length 1")
    world.submit("free", PROMPT, max_new_tokens=2, ignore_eos=True)
    world.run_until_idle()
    assert world.outputs()["free"][1]["status_code"] == 503
    assert len(world.outputs()["bound"][0]) == 2


class Intake:
    """Takes media as an intake does whose model says where the output begins, or fails."""

    def take(self, packed: bytes, input_ids: list[int]) -> RequestMedia:
        ids = np.asarray(input_ids, np.int64).tobytes()
        return RequestMedia(RowMedia(inputs=packed, padded_ids=ids), input_ids, int(packed))


def submit_media(world: World, rid: str, packed: bytes) -> None:
    params = SamplingParams(max_new_tokens=20, ignore_eos=True)
    params.normalize(None)
    world.postbox.inbox.append(
        TokenizedGenerateReq(rid=rid, input_ids=PROMPT, sampling_params=params, mm_inputs=packed)
    )


def test_media_of_a_model_that_takes_text_only():
    world = World()
    submit_media(world, "media", b"3")
    world.run_until_idle()
    ids, reason = world.outputs()["media"]
    assert ids == [] and reason["status_code"] == 400 and "takes text only" in reason["message"]


def test_position_behind_the_media_bounds_the_output():
    world = World(width=64)
    world.scheduler.media = Intake()
    submit_media(world, "fits", b"50")
    submit_media(world, "last", b"63")
    submit_media(world, "beyond", b"64")
    world.run_until_idle()
    outputs = world.outputs()
    assert len(outputs["fits"][0]) == 14 and len(outputs["last"][0]) == 1
    reason = outputs["beyond"][1]
    assert reason["status_code"] == 400
    assert "position 64 of a context of 64" in reason["message"]


def test_model_file_that_fails_on_media_ends_the_request_only(monkeypatch):
    def fail(packed, input_ids):
        raise KeyError("image_token_id")

    world = World()
    world.scheduler.media = Intake()
    monkeypatch.setattr(world.scheduler.media, "take", fail)
    submit_media(world, "media", b"3")
    world.submit("text", PROMPT, max_new_tokens=4, ignore_eos=True)
    world.run_until_idle()
    reason = world.outputs()["media"][1]
    assert reason["status_code"] == 500 and reason["err_type"] == "InternalServerError"
    assert "KeyError" in reason["message"]
    assert world.outputs()["text"][0] == expected_output(PROMPT, 4, False)


# --- flush


def test_flush_is_refused_while_a_request_runs():
    world = with_requests("runs", depth=1)
    world.postbox.inbox.append(FlushCacheReq(call_id="1"))
    world.turn()
    (reply,) = replies(world, FlushCacheReply)
    assert not reply.success and reply.message.startswith("1 requests are running or waiting")
    world.run_until_idle()
    assert world.outputs()["runs"][0] == expected_output(PROMPT, 20, False)
    assert world.cache.num_cached > 0
    world.postbox.inbox.append(FlushCacheReq(call_id="2"))
    world.turn()
    reply = replies(world, FlushCacheReply)[-1]
    assert reply.success and reply.call_id == "2" and world.cache.num_cached == 0


def test_news_go_out_in_the_turn_that_made_them():
    world = World()
    world.submit("one", PROMPT, stream=True, max_new_tokens=3, ignore_eos=True)
    for expected in expected_output(PROMPT, 3, False):
        world.turn()
        batch = world.postbox.sent[-1]
        assert isinstance(batch, BatchTokenOutput)
        assert [output.new_ids for output in batch.outputs] == [[expected]]
