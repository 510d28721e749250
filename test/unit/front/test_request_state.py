"""What a response says of its request before, while and after it runs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sglang.srt.managers import request_state
from sglang.srt.managers.io_struct import FinishReason, TokenizedGenerateReq, TokenOutput
from sglang.srt.managers.request_state import RenderOptions, RequestState
from sglang.srt.sampling.sampling_params import SamplingParams


@pytest.fixture
def clock(monkeypatch):
    """`time.monotonic` of the module, moved by hand."""
    now = SimpleNamespace(value=10.0)
    fake = SimpleNamespace(monotonic=lambda: now.value, time=lambda: 1e9 + now.value)
    monkeypatch.setattr(request_state, "time", fake)
    return now


def open_state(**options) -> RequestState:
    params = SamplingParams(max_new_tokens=8)
    source = TokenizedGenerateReq(rid="r", input_ids=[1, 2, 3], sampling_params=params)
    return RequestState("r", source, None, RenderOptions(**options), None)


def news(num_new: int, so_far: int, **more) -> TokenOutput:
    return TokenOutput(
        rid="r",
        new_ids=[5] * num_new,
        prompt_tokens=7,
        completion_tokens=so_far,
        cached_tokens=2,
        **more,
    )


END = FinishReason(type="length", length=5)


def test_before_any_news(clock):
    item = open_state().render()
    assert item == {
        "output_ids": [],
        "meta_info": {
            "id": "r",
            "finish_reason": None,
            "prompt_tokens": 3,
            "completion_tokens": 0,
            "cached_tokens": 0,
            "weight_version": "default",
            "total_retractions": 0,
            "response_sent_to_client_ts": 1e9 + 10.0,
        },
    }


def test_counts_are_those_of_the_last_news(clock):
    state = open_state()
    state.apply(news(1, 1))
    state.apply(news(2, 3, retractions=4))
    assert not state.is_finished
    meta = state.render()["meta_info"]
    assert (meta["prompt_tokens"], meta["completion_tokens"], meta["cached_tokens"]) == (7, 3, 2)
    assert meta["total_retractions"] == 4 and "e2e_latency" not in meta


@pytest.mark.parametrize("with_timings", [False, True])
def test_times_of_a_request_that_ended(clock, with_timings):
    state = open_state(with_timings=with_timings)
    clock.value = 11.0
    state.apply(news(1, 1, queue_time=0.5))
    clock.value = 12.0
    state.apply(news(1, 2, queue_time=0.5))
    clock.value = 13.0
    state.apply(news(3, 5, queue_time=0.5, finish_reason=END))
    clock.value = 14.0
    meta = state.render()["meta_info"]
    assert meta["e2e_latency"] == 3.0 and meta["response_sent_to_client_ts"] == 1e9 + 14.0
    timings = {key: meta[key] for key in meta if key.endswith(("_time", "_throughput"))}
    expected = {"queue_time": 0.5, "inference_time": 2.5, "decode_throughput": 2.0}
    assert timings == (expected if with_timings else {})


def test_one_token_has_no_throughput(clock):
    state = open_state(with_timings=True)
    clock.value = 11.0
    state.apply(news(1, 1))
    clock.value = 12.0
    state.apply(news(0, 1, finish_reason=END))
    meta = state.render()["meta_info"]
    assert "decode_throughput" not in meta and meta["inference_time"] == 2.0
