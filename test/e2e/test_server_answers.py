"""The demo model through HTTP: native routes, the official OpenAI client, streaming, structured output, concurrency."""

from __future__ import annotations

import gzip
import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

SUM = {"role": "user", "content": "What is 27 + 46?"}


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0)


def test_chat_answers_a_sum(client):
    reply = client.chat.completions.create(model="default", messages=[SUM], temperature=0)
    assert "73" in reply.choices[0].message.content
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_stream_equals_plain_answer(client):
    plain = client.chat.completions.create(model="default", messages=[SUM], temperature=0)
    chunks = list(
        client.chat.completions.create(
            model="default",
            messages=[SUM],
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == plain.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage == plain.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_json_schema_is_obeyed_even_at_high_temperature(client):
    for seed in range(4):
        reply = client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": "Say something."}],
            temperature=2.0,
            seed=seed,
            max_tokens=200,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "person", "schema": SCHEMA},
            },
        )
        if reply.choices[0].finish_reason == "length":
            continue
        value = json.loads(reply.choices[0].message.content)
        assert set(value) == {"name", "age"} and isinstance(value["age"], int)


def test_regex_and_ebnf(server):
    for constraint, pattern in (
        ({"regex": "[0-9]{3}-[a-c]{2}"}, "[0-9]{3}-[a-c]{2}"),
        ({"ebnf": 'root ::= "yes" | "no"'}, "yes|no"),
    ):
        body = {"text": "x", "sampling_params": {"max_new_tokens": 20, **constraint}}
        status, reply = server.post("/generate", body)
        assert status == 200 and re.fullmatch(pattern, reply["text"]), reply


def test_seeds_reproduce_and_n_samples_differ(server):
    body = {
        "text": "x",
        "sampling_params": {
            "temperature": 3.0,
            "max_new_tokens": 16,
            "ignore_eos": True,
            "n": 4,
            "sampling_seed": 7,
        },
    }
    first, again = server.post("/generate", body)[1], server.post("/generate", body)[1]
    ids = [item["output_ids"] for item in first]
    assert ids == [item["output_ids"] for item in again]
    assert len({tuple(row) for row in ids}) == 4


def test_concurrent_answers_equal_single_answers(server):
    prompts = [
        f"What is {a} + {b}?" for a, b in zip(range(3, 43, 2), range(50, 10, -2), strict=True)
    ]

    def ask(prompt):
        body = {"text": prompt, "sampling_params": {"temperature": 0, "max_new_tokens": 24}}
        return server.post("/generate", body)[1]["output_ids"]

    single = [ask(prompt) for prompt in prompts]
    assert server.request("/flush_cache", {})[0] == 200
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ask, prompts))
    assert together == single


def test_prefix_cache_is_reported(server):
    body = {
        "text": "A shared beginning that is long enough to be kept, number one.",
        "sampling_params": {"temperature": 0, "max_new_tokens": 2},
    }
    server.post("/generate", body)
    meta = server.post("/generate", body)[1]["meta_info"]
    assert meta["cached_tokens"] == meta["prompt_tokens"] - 1


def test_logprobs_follow_the_rules(server):
    body = {
        "text": "What is 3 + 4?",
        "sampling_params": {"temperature": 0, "max_new_tokens": 6},
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": 2,
        "return_text_in_logprobs": True,
    }
    reply = server.post("/generate", body)[1]
    meta = reply["meta_info"]
    assert len(meta["input_token_logprobs"]) == meta["prompt_tokens"]
    assert meta["input_token_logprobs"][0][0] is None
    for entry, top in zip(meta["output_token_logprobs"], meta["output_top_logprobs"], strict=True):
        assert entry[0] == pytest.approx(top[0][0], abs=1e-5)
    assert all(entry[0] <= 0 for entry in meta["output_token_logprobs"])


def test_stop_string_is_cut(server, client):
    ask = dict(model="default", messages=[SUM], temperature=0)
    whole = client.chat.completions.create(**ask).choices[0].message.content
    stop = whole[3:6]
    choice = client.chat.completions.create(stop=[stop], **ask).choices[0]
    assert choice.message.content == whole[: whole.index(stop)]
    assert (choice.finish_reason, choice.matched_stop) == ("stop", stop)


def test_client_that_leaves_frees_its_slots(server):
    payload = json.dumps(
        {
            "text": "Hello",
            "stream": True,
            "sampling_params": {"max_new_tokens": 1500, "ignore_eos": True, "temperature": 1},
        }
    ).encode()
    host, port = server.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        head = f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        raw.sendall(head.encode() + payload)
        assert b"200 OK" in raw.recv(200)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        state = json.loads(server.get("/server_info")[1])["internal_states"][0]
        if state["num_running_reqs"] == 0:
            return
        time.sleep(0.05)
    raise AssertionError("the request of a client that left is still running")


def test_information_routes(server):
    info = json.loads(server.get("/model_info")[1])
    assert info["is_generation"] is True and info["architectures"] == [
        "Qwen2VLForConditionalGeneration"
    ]
    assert json.loads(server.get("/get_model_info")[1])["model_path"] == info["model_path"]
    state = json.loads(server.get("/server_info")[1])
    assert state["max_total_num_tokens"] == 8192 and state["internal_states"][0]["memory_usage"]
    settled = ("attention_backend", "sampling_backend", "chunked_prefill_size", "random_seed")
    assert all(state[name] is not None for name in settled) and state["device"] == "cpu"
    assert server.get("/health_generate")[0] == 200
    models = json.loads(server.get("/v1/models")[1])
    assert models["data"][0]["owned_by"] == "sglang"
    metrics = server.get("/metrics")[1]
    for name in ("prompt_tokens_total", "time_to_first_token_seconds", "num_running_reqs"):
        assert f"sglang:{name}" in metrics


def test_tokenize_round_trip(server):
    tokens = server.post("/tokenize", {"prompt": "27 + 46"})[1]
    assert tokens["count"] == len(tokens["tokens"])
    assert server.post("/detokenize", {"tokens": tokens["tokens"]})[1]["text"] == "27 + 46"


def test_profile_of_some_steps(server):
    status, text = server.request("/start_profile", {"num_steps": 3, "with_stack": False})
    assert status == 200, text
    server.post(
        "/generate", {"text": "x", "sampling_params": {"max_new_tokens": 8, "ignore_eos": True}}
    )
    status, text = server.request("/stop_profile", method="POST")
    assert status == 200 and "Recorded 3 steps" in text
    path = Path(text.strip().rpartition(" to ")[2])
    trace = json.loads(gzip.decompress(path.read_bytes()))
    assert any("aten::" in event.get("name", "") for event in trace["traceEvents"])
    path.unlink()
    path.parent.rmdir()


def test_requests_can_be_logged_while_the_server_runs(server):
    server.post("/configure_logging", {"log_requests": True, "log_requests_level": 0})
    server.post("/generate", {"text": "x", "rid": "seen", "sampling_params": {"max_new_tokens": 1}})
    server.post("/configure_logging", {"log_requests": False})
    server.post(
        "/generate", {"text": "x", "rid": "unseen", "sampling_params": {"max_new_tokens": 1}}
    )
    log = server.log.read_text()
    assert "request.finished: rid='seen'" in log and "unseen" not in log
