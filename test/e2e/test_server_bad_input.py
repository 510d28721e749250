"""What clients get wrong: the documented status and words, and a server that goes on serving."""

from __future__ import annotations

import json
import socket
import time

import pytest

GOOD = {"text": "What is 3 + 4?", "sampling_params": {"temperature": 0, "max_new_tokens": 4}}


def params(**kwargs):
    return {"text": "x", "sampling_params": kwargs}


BAD_GENERATE = {
    "nothing": {},
    "unknown key": params(no_such_key=1),
    "temperature": params(temperature=-1),
    "top_p": params(top_p=0),
    "top_k": params(top_k=0),
    "nan": '{"text": "x", "sampling_params": {"temperature": NaN}}',
    "infinite": '{"text": "x", "sampling_params": {"temperature": Infinity}}',
    "wrong type": params(max_new_tokens="many"),
    "id beyond the vocabulary": {"input_ids": [1, 10**6]},
    "negative id": {"input_ids": [-1]},
    "empty text": {"text": ""},
    "empty ids": {"input_ids": []},
    "both": {"text": "x", "input_ids": [1]},
    "n": params(n=1_000_000),
    "stop of 10 MB": params(stop="x" * 10_000_000),
    "logit bias": params(logit_bias={"99999999": 1.0}),
    "bad regex": params(regex="(["),
    "bad schema": params(json_schema="{"),
    "schema of a wrong type": params(json_schema='{"type": "nonsense"}'),
    "schema of another document": params(json_schema='{"$ref": "http://127.0.0.1:1/x"}'),
    "schema without end": params(json_schema='{"$ref": "#"}'),
    "schema with too many cases": params(json_schema='{"enum": ["' + "x" * 300_000 + '"]}'),
    "schema nested too deep": params(json_schema='{"items":' * 100 + "{}" + "}" * 100),
    "grammar without end": params(ebnf='root ::= root "a"'),
    "explosive regex": params(regex="a" * 20_000),
    "deep JSON": '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "half a character": '{"text": "\\ud800"}',
    "bias without limits": '{"text": "x", "sampling_params": {"logit_bias": {"5": Infinity}}}',
    "structural tag": params(structural_tag='{"structures": 5}'),
    "same rid twice": {"text": ["a", "b"], "rid": ["r", "r"]},
    "many stops": params(stop=["a"] * 1000),
    "bad stop regex": params(stop_regex="(["),
    "bad ebnf": params(ebnf="root ::= ("),
    "two grammars": params(regex="a", ebnf='root ::= "a"'),
    "too long": {"input_ids": [5] * 5000},
    "too much asked": {"text": "x", "sampling_params": {"max_new_tokens": 10_000_000}},
    "images": {"text": "x", "image_data": "http://127.0.0.1:1/x.png"},
    "top_logprobs": {"text": "x", "return_logprob": True, "top_logprobs_num": 10**9},
    "not an object": [1, 2],
}


@pytest.fixture(autouse=True)
def still_serving(server):
    yield
    status, reply = server.post("/generate", GOOD)
    assert status == 200 and reply["meta_info"]["completion_tokens"] >= 1


@pytest.mark.parametrize("name", BAD_GENERATE)
def test_generate_answers_400(server, name):
    body = BAD_GENERATE[name]
    raw = body.encode() if isinstance(body, str) else None
    status, text = server.request("/generate", body, raw=raw)
    assert status == 400, text
    reply = json.loads(text)
    message = reply["error"]["message"] if "error" in reply else reply["message"]
    assert len(message) < 2000 and message


def test_words_for_a_prompt_that_is_too_long(server):
    _, reply = server.post("/generate", {"input_ids": [5] * 5000})
    assert "is longer than the model's context length" in reply["error"]["message"]


@pytest.mark.parametrize("raw", [b"{", b"", b"\xff\xfe", b'"text"'])
def test_malformed_json(server, raw):
    status, text = server.request("/generate", raw=raw, method="POST")
    assert status == 400, text
    json.loads(text)


def test_wrong_content_type(server):
    status, _ = server.request("/generate", GOOD, headers={"Content-Type": "text/plain"})
    assert status == 400


BAD_CHAT = {
    "no messages": {},
    "empty messages": {"messages": []},
    "role": {"messages": [{"role": "wizard", "content": "x"}]},
    "content": {"messages": [{"role": "user", "content": 5}]},
    "max tokens": {"messages": [{"role": "user", "content": "x"}], "max_completion_tokens": 10**7},
    "schema missing": {
        "messages": [{"role": "user", "content": "x"}],
        "response_format": {"type": "json_schema"},
    },
    "temperature": {"messages": [{"role": "user", "content": "x"}], "temperature": "hot"},
}


@pytest.mark.parametrize("name", BAD_CHAT)
@pytest.mark.parametrize("stream", [False, True])
def test_chat_answers_400(server, name, stream):
    status, reply = server.post("/v1/chat/completions", {**BAD_CHAT[name], "stream": stream})
    assert status == 400, reply
    assert reply["object"] == "error" and reply["code"] == 400 and reply["message"]


def test_unknown_things(server):
    assert server.get("/v1/models/nobody")[0] == 404
    assert server.get("/no/such/route")[0] == 404
    assert server.request("/abort_request", {"rid": "nobody"})[0] == 200
    assert server.post("/encode", {"text": "x"})[0] == 400
    assert "--is-embedding" in server.request("/encode", {"text": "x"})[1]


def test_explosive_regex_is_stopped(server):
    body = params(stop_regex="(a+)+$", max_new_tokens=8)
    assert server.post("/generate", body)[0] == 200
    nested = params(regex="(" * 60 + "a" + "{1,200})" * 60, max_new_tokens=4)
    status, reply = server.post("/generate", nested)
    assert status == 400, reply


def test_client_gone_in_mid_stream_frees_its_row(server):
    body = {**params(max_new_tokens=1500, ignore_eos=True), "stream": True}
    data = json.dumps(body).encode()
    host, _, port = server.base_url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as client:
        head = f"POST /generate HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        assert b"200 OK" in client.recv(4096)
    deadline = time.monotonic() + 30
    while json.loads(server.get("/get_load")[1])[0]["num_reqs"]:
        assert time.monotonic() < deadline, "the request of a client that left still runs"
        time.sleep(0.05)


def test_body_that_is_too_large_is_answered(server):
    """Also to a client that sends everything before it reads."""
    status, text = server.request("/generate", raw=b'{"text": "' + b"x" * (65 << 20) + b'"}')
    assert status == 413 and "larger than" in text


def test_profile_and_logging_routes(server):
    assert server.get("/stop_profile")[0] == 400
    assert server.request("/start_profile", {"output_dir": "/proc"})[0] == 400
    assert server.request("/start_profile", {"num_step": 1})[0] == 400
    assert server.request("/configure_logging", {"log_requests_level": 9})[0] == 400
