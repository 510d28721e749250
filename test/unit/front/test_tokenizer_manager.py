"""Requests through the tokenizer manager: shapes of responses, refusals, aborts, loss of the scheduler."""

from __future__ import annotations

import asyncio
import pickle
from types import SimpleNamespace

import pytest
from scripted_scheduler import BREAK, HOLD, OVERLOAD, REFUSE, output

from sglang.srt.managers.input_expansion import expand_input
from sglang.srt.managers.io_struct import (
    AbortReq,
    EmbeddingReqInput,
    FinishReason,
    GenerateReqInput,
    ShutdownReq,
)
from sglang.srt.managers.request_state import ClientDisconnected, ServiceError
from sglang.srt.managers.request_validation import ModelLimits, RequestValidator
from sglang.srt.utils.errors import RequestError


def collect(manager, request=None, **fields):
    """All items of one call, on a loop of its own."""

    async def run():
        obj = GenerateReqInput(**fields)
        return [item async for item in manager.generate_request(obj, request)]

    return asyncio.run(run())


def answer(manager, **fields):
    items = collect(manager, **fields)
    assert len(items) == 1
    return items[0]


def refusal(manager, **fields):
    with pytest.raises(RequestError) as caught:
        collect(manager, **fields)
    assert caught.value.status_code == 400
    return str(caught.value)


# --- shapes


def test_single_answer_has_text_ids_and_meta_info(make_front):
    front = make_front()
    item = answer(front.manager, text="w1 w2 w3", rid="me")
    assert item["text"] == "w1 w2 w3"
    assert item["output_ids"] == [1, 2, 3]
    assert "index" not in item
    meta = item["meta_info"]
    assert meta["id"] == "me"
    assert meta["finish_reason"] == {"type": "length", "length": 3}
    assert (meta["prompt_tokens"], meta["completion_tokens"], meta["cached_tokens"]) == (3, 3, 0)
    assert meta["weight_version"] == "default" and meta["total_retractions"] == 0
    assert meta["e2e_latency"] > 0 and meta["response_sent_to_client_ts"] > 0
    assert "input_token_logprobs" not in meta


def test_batch_answer_is_one_list_in_the_order_of_prompts(make_front):
    items = answer(make_front().manager, input_ids=[[5, 6], [7], [8]], rid="b")
    assert [item["output_ids"] for item in items] == [[5, 6], [7], [8]]
    assert [item["meta_info"]["id"] for item in items] == ["b_0", "b_1", "b_2"]


def test_list_of_one_prompt_is_a_batch(make_front):
    items = answer(make_front().manager, text=["w1"])
    assert isinstance(items, list) and items[0]["text"] == "w1"


def test_stream_of_a_single_request_is_cumulative(make_front):
    items = collect(make_front().manager, text="w1 w2 w3", stream=True)
    assert items[-1]["text"] == "w1 w2 w3" and items[-1]["output_ids"] == [1, 2, 3]
    assert items[-1]["meta_info"]["finish_reason"]["type"] == "length"
    assert all("w1 w2 w3".startswith(item["text"]) for item in items)
    assert all(item["meta_info"]["finish_reason"] is None for item in items[:-1])
    assert all("index" not in item for item in items)


def test_stream_output_flag_makes_ids_incremental(make_front):
    items = collect(make_front(stream_output=True).manager, text="w1 w2 w3", stream=True)
    assert sum((item["output_ids"] for item in items), []) == [1, 2, 3]
    assert items[-1]["text"] == "w1 w2 w3"


def test_stream_of_a_batch_tells_items_apart_by_index(make_front):
    items = collect(make_front().manager, input_ids=[[1, 2], [3, 4, 5]], stream=True)
    last = {item["index"]: item for item in items}
    assert last[0]["output_ids"] == [1, 2] and last[1]["output_ids"] == [3, 4, 5]
    finished = [item for item in items if item["meta_info"]["finish_reason"]]
    assert sorted(item["index"] for item in finished) == [0, 1]


def test_n_samples_are_grouped_by_prompt_and_seeded_apart(make_front):
    front = make_front()
    params = {"n": 2, "sampling_seed": 10}
    items = answer(front.manager, input_ids=[[1], [2]], sampling_params=params)
    assert [item["output_ids"] for item in items] == [[1], [1], [2], [2]]
    assert len({item["meta_info"]["id"] for item in items}) == 4
    seeds = [req.sampling_params.sampling_seed for req in front.scheduler.requests()]
    assert seeds == [10, 11, 10, 11]


def test_n_of_a_single_prompt_gives_a_list(make_front):
    items = answer(make_front().manager, text="w1", sampling_params={"n": 3}, rid="r")
    assert [item["meta_info"]["id"] for item in items] == ["r_0", "r_1", "r_2"]


def test_lists_are_per_prompt_and_scalars_are_for_all(make_front):
    front = make_front()
    answer(
        front.manager,
        input_ids=[[1], [2]],
        sampling_params=[{"top_k": 3}, {"top_k": 4}],
        return_logprob=[True, False],
        top_logprobs_num=2,
        token_ids_logprob=[5, 6],
        extra_key="key",
    )
    first, second = front.scheduler.requests()
    assert (first.sampling_params.top_k, second.sampling_params.top_k) == (3, 4)
    assert (first.top_logprobs_num, second.top_logprobs_num) == (2, 0)
    assert (first.token_ids_logprob, second.token_ids_logprob) == ([5, 6], None)
    assert first.extra_key == second.extra_key == "key"


def test_ids_of_logprobs_may_differ_by_prompt(make_front):
    front = make_front()
    given = [[5], None, [6, 7]]
    prompts = [[1], [2], [3]]
    answer(front.manager, input_ids=prompts, return_logprob=True, token_ids_logprob=given)
    assert [req.token_ids_logprob for req in front.scheduler.requests()] == given


def test_prompts_of_one_call_are_bounded(make_front, monkeypatch):
    monkeypatch.setattr("sglang.srt.managers.input_expansion.MAX_SAMPLES_PER_CALL", 2)
    front = make_front()
    assert "3 prompts in one call; at most 2" in refusal(front.manager, text=["w1"] * 3)
    assert len(answer(front.manager, text=["w1"] * 2)) == 2
    assert len(answer(front.manager, text="w1", sampling_params={"n": 2})) == 2


def test_a_prompt_must_fit_into_the_kv_cache():
    limits = ModelLimits(context_len=64, vocab_size=100, max_req_input_len=20)
    validator = RequestValidator(limits, None, allow_auto_truncate=False)
    (prompt,) = expand_input(GenerateReqInput(input_ids=[1])).prompts
    assert len(validator.build(prompt, [1] * 20, False, 0.0).input_ids) == 20
    with pytest.raises(RequestError, match="21 tokens. is longer than the 20 tokens that the KV"):
        validator.build(prompt, [1] * 21, False, 0.0)
    with pytest.raises(RequestError, match="longer than the model's context length"):
        validator.build(prompt, [1] * 64, False, 0.0)


def test_preferred_sampling_params_are_under_the_requests_own(make_front):
    front = make_front(preferred_sampling_params='{"top_k": 7, "top_p": 0.5}')
    answer(front.manager, text="w1", sampling_params={"top_k": 3})
    (req,) = front.scheduler.requests()
    assert (req.sampling_params.top_k, req.sampling_params.top_p) == (3, 0.5)
    assert front.manager.model_info["preferred_sampling_params"] == {"top_k": 7, "top_p": 0.5}


def test_without_tokenizer_ids_go_in_and_out(make_front):
    front = make_front(tokenizer=None, skip_tokenizer_init=True)
    item = answer(front.manager, input_ids=[1, 2])
    assert item["output_ids"] == [1, 2] and "text" not in item
    assert "without a tokenizer" in refusal(front.manager, text="w1")


def test_long_text_is_tokenized_in_a_thread_with_the_same_result(make_front, monkeypatch):
    monkeypatch.setattr("sglang.srt.managers.tokenizer_manager.MAX_INLINE_CHARS", 3)
    items = answer(make_front().manager, text=["w1 w2", "w3"])
    assert [item["output_ids"] for item in items] == [[1, 2], [3]]


# --- text


def test_stop_string_is_cut_and_never_shown_while_streaming(make_front):
    front = make_front(tokenizer="byte_level")
    tokenizer = front.manager.tokenizer
    pieces = ["ab", "EN", "x", "cd", "E", "ND", " tail"]
    ids = [tokenizer.encode(piece, add_special_tokens=False) for piece in pieces]

    def script(req):
        stop = FinishReason(type="stop", matched="END")
        news = [output(req, part) for part in ids[:5]]
        return [*news, output(req, ids[5] + ids[6], stop, trim_text="END")]

    front.scheduler.script = script
    items = collect(front.manager, input_ids=[1], sampling_params={"stop": "END"}, stream=True)
    assert items[-1]["text"] == "abENxcd"
    assert all("abENxcd".startswith(item["text"]) for item in items)
    kept = collect(
        front.manager, input_ids=[1], sampling_params={"stop": "END", "no_stop_trim": True}
    )
    assert kept[-1]["meta_info"]["finish_reason"] == {"type": "stop", "matched": "END"}


def test_stop_token_is_in_the_ids_but_not_in_the_text(make_front):
    front = make_front()
    stop = FinishReason(type="stop", matched=9)
    front.scheduler.script = lambda req: [output(req, [1, 9], stop, trim_ids=1)]
    item = answer(front.manager, text="w3")
    assert item["text"] == "w1" and item["output_ids"] == [1, 9]


# --- logprobs


def test_logprobs_are_triples_without_text_by_default(make_front):
    meta = answer(
        make_front().manager,
        input_ids=[4, 5],
        return_logprob=True,
        logprob_start_len=0,
        top_logprobs_num=2,
        token_ids_logprob=[7],
    )["meta_info"]
    assert meta["input_token_logprobs"] == [(None, 4, None), (-5.0, 5, None)]
    assert meta["output_token_logprobs"] == [(-4.0, 4, None), (-5.0, 5, None)]
    assert meta["input_top_logprobs"] == [None, None]
    assert meta["output_top_logprobs"][0] == [(-4.0, 4, None), (-9.0, 5, None)]
    assert meta["output_token_ids_logprobs"] == [[(-9.0, 7, None)]] * 2


def test_output_only_logprobs_have_an_empty_input_list_and_no_other_keys(make_front):
    meta = answer(make_front().manager, input_ids=[4, 5], return_logprob=True)["meta_info"]
    assert meta["input_token_logprobs"] == []
    assert {key for key in meta if "logprobs" in key} == {
        "input_token_logprobs",
        "output_token_logprobs",
    }


@pytest.mark.parametrize("stream", [False, True])
def test_texts_of_output_logprobs_join_to_the_text(make_front, stream):
    front = make_front(tokenizer="byte_level")
    ids = [
        i for i in front.manager.tokenizer.encode("näïve 好", add_special_tokens=False) if i < 110
    ]
    item = collect(
        front.manager,
        input_ids=ids,
        return_logprob=True,
        return_text_in_logprobs=True,
        stream=stream,
    )[-1]
    triples = item["meta_info"]["output_token_logprobs"]
    assert [triple[1] for triple in triples] == ids
    assert "".join(triple[2] for triple in triples) == item["text"] != ""


def test_streamed_logprobs_accumulate(make_front):
    items = collect(make_front().manager, input_ids=[4, 5, 6], return_logprob=True, stream=True)
    lengths = [len(item["meta_info"]["output_token_logprobs"]) for item in items]
    assert lengths == sorted(lengths) and lengths[-1] == 3


# --- refusals


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "exactly one of text and input_ids"),
        ({"text": "w1", "input_ids": [1]}, "both were given"),
        ({"text": ""}, "prompt is empty"),
        ({"text": []}, "batch is empty"),
        ({"input_ids": []}, "prompt is empty"),
        ({"input_ids": [[1], []]}, "prompt is empty"),
        ({"text": ["w1", 5]}, "text must be"),
        ({"input_ids": [1, 110]}, "outside the vocabulary"),
        ({"input_ids": [-1]}, "outside the vocabulary"),
        ({"input_ids": [1.5]}, "not a whole number"),
        ({"input_ids": [True]}, "not a whole number"),
        ({"input_ids": [[1], 2]}, "not a whole number"),
        ({"input_ids": [10**30]}, "outside the vocabulary"),
        ({"input_embeds": [[0.5]]}, "input_embeds is not supported"),
        ({"text": "w1", "image_data": "http://x/y.png"}, "takes text only"),
        ({"text": "w1", "audio_data": ["a"]}, "takes text only"),
        ({"input_ids": [1] * 64}, "is longer than the model's context length"),
        (
            {"input_ids": [1] * 10, "sampling_params": {"max_new_tokens": 54}},
            "max_completion_tokens is too large",
        ),
        ({"text": "w1", "sampling_params": {"bogus": 1}}, "unknown sampling parameter"),
        ({"text": "w1", "sampling_params": {"top_p": 2}}, "top_p"),
        ({"text": "w1", "sampling_params": {"n": 0}}, "n=0"),
        ({"text": "w1", "sampling_params": {"n": "2"}}, "n="),
        ({"text": "w1", "sampling_params": [1]}, "sampling_params"),
        ({"text": "w1", "sampling_params": {"logit_bias": {"500": 1.0}}}, "outside the vocabulary"),
        ({"text": ["w1", "w2"], "sampling_params": [{}]}, "1 entries for 2 prompts"),
        ({"text": ["w1", "w2"], "sampling_params": [{"n": 2}, {"n": 3}]}, "the same n"),
        ({"text": "w1", "sampling_params": {"n": 4096}, "rid": "x" * 300}, "rid must have"),
        ({"text": ["w1"] * 20, "sampling_params": {"n": 4096}}, "samples; at most"),
        ({"text": ["w1", "w2"], "rid": ["a", "a"]}, "already in use"),
        ({"text": ["w1", "w2"], "rid": ["a"]}, "rid has 1 entries"),
        ({"text": "w1", "rid": 5}, "rid must be a string"),
        ({"text": "w1", "return_logprob": True, "logprob_start_len": 2}, "logprob_start_len=2"),
        ({"text": "w1", "return_logprob": True, "logprob_start_len": -2}, "logprob_start_len=-2"),
        ({"text": "w1", "return_logprob": True, "top_logprobs_num": 129}, "top_logprobs_num=129"),
        ({"text": "w1", "return_logprob": "yes"}, "return_logprob"),
        ({"text": "w1", "token_ids_logprob": [110]}, "outside the vocabulary"),
        ({"text": "w1 \ud800"}, "not valid Unicode"),
        ({"input_ids": 5}, "input_ids must be a list of token ids"),
        ({"text": "w1", "token_ids_logprob": 5}, "token_ids_logprob must be a list"),
        ({"text": "w1", "token_ids_logprob": [[5]]}, "1 lists for 1 prompts"),
        ({"text": ["w1", "w2"], "token_ids_logprob": [[5]]}, "1 lists for 2 prompts"),
        ({"text": "w1", "token_ids_logprob": [1] * 4097}, "4097 entries; at most 4096"),
    ],
)
def test_bad_requests_are_refused_before_the_scheduler_sees_them(make_front, fields, words):
    front = make_front()
    assert words in refusal(front.manager, **fields)
    assert front.manager.num_in_flight == 0
    # The front still serves, and the refused request never arrived.
    assert answer(front.manager, text="w3")["text"] == "w3"
    assert len(front.scheduler.requests()) == 1


def test_default_length_is_not_refused_although_it_does_not_fit(make_front):
    assert answer(make_front().manager, input_ids=[1] * 63)["output_ids"] == [1] * 63


def test_auto_truncate_cuts_the_prompt_and_the_length(make_front):
    front = make_front(allow_auto_truncate=True)
    answer(front.manager, input_ids=[1] * 100, sampling_params={"max_new_tokens": 50})
    answer(
        front.manager,
        input_ids=[1] * 40,
        sampling_params={"max_new_tokens": 50, "min_new_tokens": 40},
    )
    first, second = front.scheduler.requests()
    assert len(first.input_ids) == 63 and first.sampling_params.max_new_tokens == 1
    params = second.sampling_params
    assert len(second.input_ids) == 40
    assert params.max_new_tokens == params.min_new_tokens == 24


def test_rid_in_use_is_refused(make_front):
    front = make_front()

    async def run():
        first = front.manager.generate_request(
            GenerateReqInput(input_ids=[HOLD], rid="x", stream=True)
        )
        await anext(first)
        with pytest.raises(RequestError, match="already in use"):
            await anext(front.manager.generate_request(GenerateReqInput(input_ids=[1], rid="x")))
        await first.aclose()

    asyncio.run(run())


def test_embedding_request_names_the_flag(make_front):
    async def run():
        await anext(make_front().manager.generate_request(EmbeddingReqInput(text="w1")))

    with pytest.raises(ValueError, match="--is-embedding"):
        asyncio.run(run())


# --- aborts


@pytest.mark.parametrize(
    ("token", "error", "status"),
    [(REFUSE, RequestError, 400), (OVERLOAD, ServiceError, 503), (BREAK, ServiceError, 500)],
)
def test_abort_with_a_status_raises_unless_streaming(make_front, token, error, status):
    front = make_front()
    with pytest.raises(error, match="no luck") as caught:
        collect(front.manager, input_ids=[token])
    assert caught.value.status_code == status
    last = collect(front.manager, input_ids=[token], stream=True)[-1]
    assert last["meta_info"]["finish_reason"]["status_code"] == status


def test_user_abort_returns_normally(make_front):
    front = make_front()

    async def run():
        obj = GenerateReqInput(input_ids=[[HOLD], [HOLD]], rid="job")
        task = asyncio.ensure_future(anext(front.manager.generate_request(obj)))
        while len(front.scheduler.held) < 2:
            await asyncio.sleep(0.01)
        front.manager.abort_request("job")
        return await task

    items = asyncio.run(run())
    assert [item["meta_info"]["finish_reason"]["type"] for item in items] == ["abort", "abort"]
    assert items[0]["output_ids"] == [1]


def test_closing_a_stream_aborts_exactly_its_requests(make_front):
    front = make_front()

    async def run():
        obj = GenerateReqInput(input_ids=[HOLD], rid="a", stream=True)
        stream = front.manager.generate_request(obj)
        await anext(stream)
        await stream.aclose()

    asyncio.run(run())
    message = front.scheduler.wait_for(AbortReq)
    assert (message.rid, message.exact) == ("a", True)
    assert front.manager.num_in_flight == 0


def test_cancelling_a_call_aborts_all_its_samples(make_front):
    front = make_front()

    async def run():
        obj = GenerateReqInput(input_ids=[[HOLD], [1], [HOLD]], rid="c")
        task = asyncio.ensure_future(anext(front.manager.generate_request(obj)))
        while len(front.scheduler.held) < 2:
            await asyncio.sleep(0.01)
        while front.manager.num_in_flight > 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    front.scheduler.wait_for(AbortReq)
    assert answer(front.manager, text="w1")["text"] == "w1"
    aborted = [m.rid for m in front.scheduler.received if isinstance(m, AbortReq)]
    assert aborted == ["c_0", "c_2"]


def test_disconnected_client_ends_the_request(make_front, monkeypatch):
    monkeypatch.setenv("SGLANG_REQUEST_STATE_WAIT_TIMEOUT", "0.02")
    front = make_front()

    class Gone:
        asked = 0

        async def is_disconnected(self):
            self.asked += 1
            return self.asked > 2

    with pytest.raises(ClientDisconnected) as caught:
        collect(front.manager, request=Gone(), input_ids=[HOLD])
    assert caught.value.status_code == 499
    assert front.scheduler.wait_for(AbortReq).exact


# --- loops and failures


@pytest.mark.parametrize("stream", [False, True])
def test_client_is_asked_once_per_interval_while_a_stream_has_news(make_front, monkeypatch, stream):
    """And not at all when the answer comes sooner."""
    monkeypatch.setenv("SGLANG_REQUEST_STATE_WAIT_TIMEOUT", "1000")
    front = make_front()

    class Client:
        async def is_disconnected(self):
            raise AssertionError("asked too soon")

    items = collect(front.manager, request=Client(), input_ids=[1, 2, 3], stream=stream)
    assert items[-1]["output_ids"] == [1, 2, 3]


def test_disconnected_client_ends_its_stream(make_front, monkeypatch):
    monkeypatch.setenv("SGLANG_REQUEST_STATE_WAIT_TIMEOUT", "0.02")
    front = make_front()

    class Gone:
        async def is_disconnected(self):
            return True

    with pytest.raises(ClientDisconnected):
        collect(front.manager, request=Gone(), input_ids=[HOLD], stream=True)
    assert front.scheduler.wait_for(AbortReq).exact


def test_call_from_a_second_running_loop_is_refused(make_front):
    front = make_front()

    async def hold():
        stream = front.manager.generate_request(
            GenerateReqInput(input_ids=[HOLD], rid="first", stream=True)
        )
        await anext(stream)
        try:
            with pytest.raises(RuntimeError, match="another running event loop"):
                await asyncio.to_thread(collect, front.manager, input_ids=[1])
        finally:
            await stream.aclose()

    asyncio.run(hold())
    assert answer(front.manager, input_ids=[1])["output_ids"] == [1]


def test_each_asyncio_run_is_served(make_front):
    front = make_front()
    for _ in range(3):
        assert answer(front.manager, text="w1 w2")["text"] == "w1 w2"


def test_outputs_that_arrive_while_no_loop_runs_are_not_lost(make_front):
    front = make_front()
    loop = asyncio.new_event_loop()
    stream = front.manager.generate_request(GenerateReqInput(input_ids=[1, 2, 3], stream=True))
    first = loop.run_until_complete(anext(stream))
    assert first["output_ids"]
    front.scheduler.wait_for(type(front.scheduler.requests()[0]))

    async def rest():
        return [item async for item in stream]

    items = [first, *loop.run_until_complete(rest())]
    assert items[-1]["output_ids"] == [1, 2, 3]
    loop.close()


def test_call_left_in_a_dead_loop_is_aborted_by_the_next_one(make_front):
    front = make_front()
    loop = asyncio.new_event_loop()
    stream = front.manager.generate_request(
        GenerateReqInput(input_ids=[HOLD], rid="old", stream=True)
    )
    loop.run_until_complete(anext(stream))
    assert answer(front.manager, text="w1")["text"] == "w1"
    assert front.scheduler.wait_for(AbortReq).rid == "old"
    with pytest.raises(ServiceError, match="another event loop"):
        loop.run_until_complete(anext(stream))
    loop.close()


def test_many_concurrent_calls(make_front):
    front = make_front()

    async def one(i):
        obj = GenerateReqInput(input_ids=[i % 80, 5], stream=i % 2 == 0)
        return [item async for item in front.manager.generate_request(obj)][-1]["output_ids"]

    async def run():
        return await asyncio.gather(*(one(i) for i in range(200)))

    assert asyncio.run(run()) == [[i % 80, 5] for i in range(200)]


def test_unreadable_message_of_the_scheduler_ends_every_call(make_front):
    front = make_front()

    async def run():
        stream = front.manager.generate_request(GenerateReqInput(input_ids=[HOLD], stream=True))
        await anext(stream)
        with front.scheduler.lock:
            front.scheduler.outbox.send(b"no message")
        with pytest.raises(ServiceError, match="cannot be read"):
            await anext(stream)

    asyncio.run(run())
    assert not front.manager.is_alive
    with pytest.raises(ServiceError, match="cannot be read"):
        collect(front.manager, input_ids=[1])


def test_lost_scheduler_fails_those_who_wait_for_a_reply(make_front):
    front = make_front()
    front.scheduler.handle = lambda message: None  # hears, and does not answer

    async def run():
        asked = [asyncio.ensure_future(front.manager.flush_cache()) for _ in range(2)]
        while len(front.scheduler.received) < 2:
            await asyncio.sleep(0.01)
        asked[0].cancel()
        front.manager._client.fail("the scheduler left")
        front.manager._client.fail("a later reason")
        with pytest.raises(ServiceError, match="the scheduler left"):
            await asked[1]

    asyncio.run(run())


def test_closed_engine_says_so_to_those_who_wait_and_those_who_come(make_front):
    front = make_front()

    async def run():
        stream = front.manager.generate_request(GenerateReqInput(input_ids=[HOLD], stream=True))
        await anext(stream)
        front.manager.close()
        with pytest.raises(ServiceError, match="has been shut down"):
            await anext(stream)

    asyncio.run(run())
    front.manager.close()  # twice does no harm
    assert not front.manager.is_alive
    with pytest.raises(ServiceError, match="has been shut down"):
        collect(front.manager, input_ids=[1])
    front.scheduler.thread.join(10)
    assert isinstance(front.scheduler.received[-1], ShutdownReq)


def test_lost_scheduler_fails_waiting_and_later_calls(make_front):
    front = make_front()

    async def run():
        calls = [
            asyncio.ensure_future(
                anext(
                    front.manager.generate_request(GenerateReqInput(input_ids=[HOLD], stream=False))
                )
            )
            for _ in range(3)
        ]
        while len(front.scheduler.held) < 3:
            await asyncio.sleep(0.01)
        front.manager._client.fail("the scheduler fell over")
        return await asyncio.gather(*calls, return_exceptions=True)

    errors = asyncio.run(run())
    assert [(type(e), e.status_code) for e in errors] == [(ServiceError, 500)] * 3
    assert "fell over" in str(errors[0])
    with pytest.raises(ServiceError, match="fell over"):
        collect(front.manager, text="w1")
    assert not front.manager.is_alive


# --- management


def test_flush_cache_and_server_info(make_front):
    front = make_front(api_key="secret")
    assert asyncio.run(front.manager.flush_cache()).success
    info = asyncio.run(front.manager.get_server_info())
    assert info["max_total_num_tokens"] == 1000 and info["context_length"] is None
    assert info["internal_states"] == [{"num_running_reqs": 0, "last_gen_throughput": 5.0}]
    assert info["version"] and "secret" not in str(info)


def test_server_info_shows_open_flags_as_the_scheduler_settled_them(make_front):
    front = make_front(port=1234)
    assert asyncio.run(front.manager.get_server_info())["attention_backend"] is None
    front.manager.scheduler_info["settled_flags"] = {"attention_backend": "triton"}
    for _ in range(2):
        info = asyncio.run(front.manager.get_server_info())
        assert info["attention_backend"] == "triton" and info["port"] == 1234
        assert "settled_flags" not in info


def test_profile(make_front):
    front = make_front()
    assert asyncio.run(front.manager.start_profile({"num_steps": 3})) == "3 steps"
    assert asyncio.run(front.manager.stop_profile()) == "wrote it"
    with pytest.raises(RequestError, match="0 steps"):  # refused by the scheduler
        asyncio.run(front.manager.start_profile({"num_steps": 0}))
    for bad in ({"num_step": 3}, {"num_steps": "three"}, {"self": 1}):
        with pytest.raises(RequestError, match="profile options"):
            asyncio.run(front.manager.start_profile(bad))
    assert not front.manager._client._replies, "nobody waits any more"


def test_metrics_count_requests_and_ask_the_scheduler(make_front):
    front = make_front(enable_metrics=True)
    collect(front.manager, input_ids=[1, 2, 3], stream=True)
    collect(front.manager, input_ids=[1], log_metrics=False)
    text = asyncio.run(front.manager.render_metrics()).decode()
    values = {line.split("{")[0]: line.split()[-1] for line in text.splitlines() if "{" in line}
    assert values["sglang:num_requests_total"] == "1.0"
    assert values["sglang:prompt_tokens_total"] == "3.0"
    assert values["sglang:generation_tokens_total"] == "3.0"
    assert values["sglang:time_to_first_token_seconds_count"] == "1.0"
    assert values["sglang:e2e_request_latency_seconds_count"] == "1.0"
    assert values["sglang:inter_token_latency_seconds_count"] == "2.0"
    assert values["sglang:gen_throughput"] == "5.0"
    assert 'model_name="' in text


def test_model_info(make_front, model_folder):
    info = make_front().manager.model_info
    assert info["model_path"] == info["tokenizer_path"] == model_folder
    assert info["is_generation"] is True and info["weight_version"] == "default"


@pytest.mark.parametrize("stream", [False, True])
def test_request_logger_sees_each_call_and_each_end(make_front, stream):
    front, seen = make_front(), []
    front.manager.request_logger = SimpleNamespace(
        log_received=lambda obj, rids: seen.append((obj.input_ids, rids)),
        log_finished=lambda obj, item: seen.append(item["meta_info"]["id"]),
    )
    collect(front.manager, input_ids=[[1, 2], [3]], rid="b", stream=stream)
    assert seen[0] == ([[1, 2], [3]], ["b_0", "b_1"])
    assert sorted(seen[1:]) == ["b_0", "b_1"]


def test_metrics_that_are_off_are_not_found(make_front):
    with pytest.raises(ServiceError, match="--enable-metrics") as caught:
        asyncio.run(make_front().manager.render_metrics())
    assert caught.value.status_code == 404


def test_facts_of_the_scheduler(make_front):
    manager = make_front().manager
    before = manager.last_receive_ts
    answer(manager, text="w1")
    assert manager.last_receive_ts > before
    assert manager.context_len == 64


@pytest.mark.parametrize("error", [RequestError("no", 418), ServiceError("no", 503)])
def test_errors_cross_process_borders(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), copy.message, copy.status_code) == ("no", "no", error.status_code)
