"""`/v1/chat/completions`: what reaches the engine, and the shape of what comes back."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import httpx
import openai
import pytest

from sglang.srt.entrypoints.openai.chat_template import ChatTemplates
from sglang.srt.entrypoints.openai.sampling_fields import model_defaults
from sglang.srt.managers.request_state import ServiceError
from sglang.srt.utils.errors import RequestError

CHOICE_KEYS = {"index", "message", "logprobs", "finish_reason", "matched_stop"}
MESSAGE_KEYS = {"role", "content", "reasoning_content", "tool_calls"}


def test_answer(server):
    response = server.chat("hi", model="any-name", rid="req1")
    assert response.status_code == 200
    body = response.json()
    assert set(body) == {"id", "object", "created", "model", "choices", "usage", "metadata"}
    assert body["id"] == "req1" and body["object"] == "chat.completion"
    assert body["model"] == "any-name"
    assert body["metadata"] == {"weight_version": "v1"}
    (choice,) = body["choices"]
    assert set(choice) == CHOICE_KEYS and set(choice["message"]) == MESSAGE_KEYS
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == "Hello wörld"
    assert choice["finish_reason"] == "stop" and choice["matched_stop"] == 7
    assert choice["logprobs"] is None
    num_prompt = len(server.last.input_ids)
    assert body["usage"] == {
        "prompt_tokens": num_prompt,
        "completion_tokens": 3,
        "total_tokens": num_prompt + 3,
        "prompt_tokens_details": None,
        "reasoning_tokens": 0,
    }


def test_prompt_ids_equal_the_tokenizers_own(server):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]
    server.chat(messages=messages)
    tokenizer = server.manager.tokenizer
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert server.last.input_ids == expected


def test_sampling_fields(server):
    fields = {
        "temperature": 0.3,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "min_tokens": 2,
        "max_tokens": 50,
        "max_completion_tokens": 60,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "repetition_penalty": 1.1,
        "logit_bias": {"5": -1.0},
        "n": 2,
        "seed": 11,
        "stop": ["a", "b"],
        "stop_token_ids": [3],
        "stop_regex": "x+",
        "ignore_eos": True,
        "no_stop_trim": True,
        "skip_special_tokens": False,
        "priority": 4,
    }
    server.chat(**fields)
    assert server.last.priority == 4
    assert server.last.sampling_params == {
        "temperature": 0.3,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "min_new_tokens": 2,
        "max_new_tokens": 60,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "repetition_penalty": 1.1,
        "logit_bias": {"5": -1.0},
        "n": 2,
        "sampling_seed": 11,
        "stop": ["a", "b"],
        "stop_token_ids": [3],
        "stop_regex": "x+",
        "ignore_eos": True,
        "no_stop_trim": True,
        "skip_special_tokens": False,
    }


def test_sampling_params_are_valid_for_the_engine(server):
    from sglang.srt.sampling.sampling_params import SamplingParams

    server.chat(temperature=0.5, seed=3, logit_bias={"5": 1})
    params = SamplingParams(**server.last.sampling_params)
    params.verify(vocab_size=1000)
    assert params.max_new_tokens is None  # no limit given: to the end of the context


def test_model_defaults(make_server, tmp_path):
    config = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "do_sample": True, "eos_token_id": 1}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    server = make_server(model_path=str(tmp_path), sampling_defaults="model")
    server.chat(top_k=7)
    params = server.last.sampling_params
    assert (params["temperature"], params["top_k"], params["top_p"]) == (0.6, 7, 0.95)
    assert "do_sample" not in params and "eos_token_id" not in params
    server = make_server(model_path=str(tmp_path), sampling_defaults="openai")
    server.chat()
    assert "temperature" not in server.last.sampling_params


@pytest.mark.parametrize(("top_k", "expected"), [(0, -1), (1, 1), (-1, -1)])
def test_top_k_of_a_generation_config(top_k, expected):
    """Zero is how Transformers spells "off"; null is not set."""
    assert model_defaults({"top_k": top_k, "top_p": None}) == {"top_k": expected}


def test_logprobs(server):
    content = server.chat(logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["Hel", "lo", " wörld"]
    assert content[2]["bytes"] == list(" wörld".encode())
    assert content[0]["logprob"] == -0.5
    assert content[0]["top_logprobs"][1] == {
        "token": "other",
        "bytes": list(b"other"),
        "logprob": -9.0,
    }
    assert server.last.return_text_in_logprobs and server.last.top_logprobs_num == 2


def test_several_samples_count_the_prompt_once(server):
    body = server.chat(n=3).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert body["usage"]["prompt_tokens"] == len(server.last.input_ids)
    assert body["usage"]["completion_tokens"] == 9


def test_cache_report(make_server):
    server = make_server(enable_cache_report=True)
    assert server.chat(n=2).json()["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}
    server.manager.cached_tokens = 0
    assert server.chat().json()["usage"]["prompt_tokens_details"] is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"json_schema": '{"type": "object"}'}),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"a": 1}},
                }
            },
            {"json_schema": '{"a": 1}'},
        ),
        ({"regex": "a+"}, {"regex": "a+"}),
        ({"ebnf": "root ::= x"}, {"ebnf": "root ::= x"}),
    ],
)
def test_constraints(server, fields, expected):
    assert server.chat(**fields).status_code == 200
    keys = {"json_schema", "regex", "ebnf", "structural_tag"}
    assert {k: v for k, v in server.last.sampling_params.items() if k in keys} == expected


def test_structural_tag(server):
    tag = {
        "type": "structural_tag",
        "structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}],
        "triggers": ["<a"],
    }
    server.chat(response_format=tag)
    assert json.loads(server.last.sampling_params["structural_tag"]) == tag


def test_cache_keys_do_not_collide(server):
    keys = []
    for fields in (
        {"cache_salt": "a", "extra_key": "bc"},
        {"cache_salt": "ab", "extra_key": "c"},
        {"cache_salt": "abc"},
        {"extra_key": "abc"},
        {},
    ):
        server.chat(**fields)
        keys.append(server.last.extra_key)
    assert len(set(keys)) == 5 and keys[-2:] == ["abc", None]


# --- messages


def prompt_text(server, **fields):
    response = server.chat(**fields)
    assert response.status_code == 200, response.text
    return server.manager.tokenizer.decode(server.last.input_ids)


def test_roles_in_any_case_and_null_content(server):
    messages = [{"role": "System", "content": None}, {"role": "USER", "content": "x"}]
    expected = (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt_text(server, messages=messages) == expected


def test_text_parts_are_joined(server):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert "user\na b<|im_end|>" in prompt_text(server, content=parts)


def test_final_assistant_message(server):
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "Sure, "}]
    assert "<|im_start|>user\nSure, <|im_end|>" in prompt_text(server, messages=messages)
    text = prompt_text(server, messages=messages, continue_final_message=True)
    assert text.endswith("<|im_start|>assistant\nSure, ")


def test_tool_call_arguments_become_objects(make_server):
    server = make_server("{{ messages | tojson }}")
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "c"},
    ]
    rendered = json.loads(prompt_text(server, messages=messages))
    assert rendered[1]["tool_calls"][0]["function"]["arguments"] == {"a": [1]}
    assert rendered[2] == {"role": "tool", "content": "42", "tool_call_id": "c"}
    call["function"]["arguments"] = "{"
    assert server.chat(messages=messages).status_code == 400


def test_template_variables(make_server):
    server = make_server("{{ reasoning_effort }}|{{ enable_thinking }}|{{ custom }}|{{ tools }}")
    fields = {
        "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": False, "custom": "c"},
    }
    assert prompt_text(server, **fields) == "low|False|c|None"
    fields = {"reasoning": {"enabled": True, "effort": "high"}}
    assert prompt_text(server, **fields) == "high|True||None"


def test_special_tokens_of_clients_are_text(server):
    server.chat("a<|im_end|>b")
    tokenizer = server.manager.tokenizer
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert server.last.input_ids.count(end) == 1
    assert "a<|im_end|>b" in tokenizer.decode(server.last.input_ids)


# --- refusals


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "'system', 'developer'"),
        ({"n": 0}, "n:"),
        ({"n": 100000}, "n:"),
        ({"top_logprobs": 1000, "logprobs": True}, "top_logprobs"),
        ({"temperature": "warm"}, "temperature"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
    ],
)
def test_invalid_bodies(server, fields, words):
    response = server.chat(**fields)
    assert response.status_code == 400
    body = response.json()
    assert set(body) == {"object", "message", "type", "param", "code"}
    assert (body["object"], body["type"], body["param"], body["code"]) == (
        "error",
        "Bad Request",
        None,
        400,
    )
    assert words in body["message"]
    assert not server.manager.requests


IMAGE = [{"type": "image_url", "image_url": {"url": "http://localhost/secret.png"}}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"content": IMAGE}, "text only"),
        ({"content": [{"type": "hologram"}]}, "hologram"),
        ({"content": [{"type": "text"}]}, "text"),
        ({"tools": TOOLS}, "tools are not supported"),
        ({"tools": TOOLS, "tool_choice": "required"}, "tools are not supported"),
        ({"tool_choice": "required"}, "needs tools"),
        ({"lora_path": "x"}, "lora_path"),
        ({"custom_logit_processor": "x"}, "custom_logit_processor"),
        ({"return_hidden_states": True}, "return_hidden_states"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, "schema"),
        ({"regex": "a", "ebnf": "b"}, "one constraint"),
        ({"top_logprobs": 3}, "logprobs: true"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"rid": ["a"]}, "rid"),
        ({"content": "\ud800"}, "Unicode"),
    ],
)
def test_refused_requests(server, fields, words):
    response = server.chat(**fields)
    assert response.status_code == 400
    body = response.json()
    if body["type"] != "Bad Request":  # pydantic refuses some of it before we do
        assert (body["object"], body["type"], body["code"]) == ("error", "BadRequestError", 400)
    assert words.lower() in body["message"].lower()
    assert not server.manager.requests


def test_tools_are_harmless_when_none_may_be_called(server):
    assert server.chat(tools=TOOLS, tool_choice="none").status_code == 200


def test_template_error(make_server):
    server = make_server(
        "{% if messages[0].content == 'bad' %}{{ raise_exception('no bad words') }}{% endif %}x"
    )
    response = server.chat("bad")
    assert response.status_code == 400 and "no bad words" in response.json()["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (RequestError("too long"), 400, "BadRequestError"),
        (ServiceError("The request queue is full.", 503), 503, "503"),
        (RuntimeError("secret detail"), 500, "InternalServerError"),
    ],
)
def test_engine_errors(server, stream, error, status, kind):
    server.manager.error = error
    response = server.chat(stream=stream)
    assert response.status_code == status
    body = response.json()
    assert (body["type"], body["code"], body["object"]) == (kind, status, "error")
    assert "secret" not in response.text


@pytest.mark.parametrize("stream", [False, True])
def test_server_abort_is_an_error_and_a_clients_abort_is_not(server, stream):
    server.manager.pieces = ["x"]
    server.manager.finish = {
        "type": "abort",
        "message": "queue full",
        "status_code": 503,
        "err_type": None,
    }
    assert server.chat(stream=stream).status_code == 503
    server.manager.finish = {
        "type": "abort",
        "message": "Aborted",
        "status_code": None,
        "err_type": None,
    }
    response = server.chat(stream=stream)
    assert response.status_code == 200 and '"finish_reason":"abort"' in response.text


def test_server_abort_in_the_middle_of_a_stream_is_an_error_event(server):
    server.manager.finish = {"type": "abort", "message": "lost", "status_code": 503}
    response = server.chat(stream=True)
    assert response.status_code == 200
    *_, last, done = [line for line in response.text.split("\n\n") if line]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["message"] == "lost" and error["code"] == 503
    assert done == "data: [DONE]" and '"finish_reason":"abort"' not in response.text


# --- streams


def test_stream(server, events):
    response = server.chat(stream=True, rid="r", model="m")
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = events(response.text)
    for chunk in chunks:
        assert set(chunk) == {"id", "object", "created", "model", "choices", "usage"}
        assert (chunk["id"], chunk["object"], chunk["model"]) == ("r", "chat.completion.chunk", "m")
        assert chunk["usage"] is None
        (choice,) = chunk["choices"]
        assert set(choice) == {"index", "delta", "logprobs", "finish_reason", "matched_stop"}
        assert set(choice["delta"]) == MESSAGE_KEYS
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"]["role"] == "assistant" and choices[0]["delta"]["content"] == ""
    assert [c["delta"]["content"] for c in choices[1:]] == ["Hel", "lo", " wörld", None]
    assert [c["finish_reason"] for c in choices] == [None] * 4 + ["stop"]
    assert choices[-1]["matched_stop"] == 7


def test_pieces_without_text_are_not_streamed(server, events):
    server.manager.pieces = ["Hel", "", "lo", ""]
    choices = [chunk["choices"][0] for chunk in events(server.chat(stream=True).text)]
    assert [c["delta"]["content"] for c in choices] == ["", "Hel", "lo", None]


@pytest.mark.parametrize(
    ("asked", "expected"), [(None, []), ("a", ["a"]), (["a", "b"], ["a", "b"])]
)
def test_what_ends_an_answer_in_the_template_ends_it_too(server, monkeypatch, asked, expected):
    encode = ChatTemplates.encode

    async def encode_with_stop(self, *args, **kwargs):
        return dataclasses.replace(await encode(self, *args, **kwargs), stop=("USER:", "</s>"))

    monkeypatch.setattr(ChatTemplates, "encode", encode_with_stop)
    assert server.chat(stop=asked).status_code == 200
    assert server.last.sampling_params["stop"] == [*expected, "USER:", "</s>"]


def test_stream_of_several_samples(server, events):
    chunks = events(server.chat(stream=True, n=2).text)
    for index in (0, 1):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        assert "".join(c["delta"]["content"] or "" for c in mine) == "Hello wörld"
        assert [c["finish_reason"] for c in mine].count("stop") == 1


def test_stream_usage(server, events):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(server.chat(stream=True, n=2, stream_options=options).text)
    last = chunks.pop()
    num_prompt = len(server.last.input_ids)
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] == num_prompt
    assert last["usage"]["completion_tokens"] == 6
    content = [c for c in chunks if c["choices"][0]["delta"]["content"]]
    assert [c["usage"]["completion_tokens"] for c in content if c["choices"][0]["index"] == 0] == [
        1,
        2,
        3,
    ]
    assert all(c["usage"]["prompt_tokens"] == num_prompt for c in content)


def test_stream_logprobs_are_the_new_ones(server, events):
    chunks = events(server.chat(stream=True, logprobs=True).text)
    found = [c["choices"][0]["logprobs"] for c in chunks]
    tokens = [entry["token"] for logprobs in found if logprobs for entry in logprobs["content"]]
    assert tokens == ["Hel", "lo", " wörld"]


@pytest.mark.parametrize("error", [ServiceError("scheduler died", 500), RuntimeError("secret")])
def test_error_inside_a_stream(server, events, error):
    server.manager.error, server.manager.error_after = error, 1
    response = server.chat(stream=True)
    assert response.status_code == 200
    last = events(response.text)[-1]["error"]
    assert set(last) == {"object", "message", "type", "param", "code"}
    assert last["code"] == 500 and "secret" not in last["message"]


def test_disconnect_closes_the_generator(server):
    server.manager.hang_after = 1
    body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    with server.listening() as url:
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            assert next(response.iter_text()).startswith("data: ")
        assert server.manager.closed.wait(10)


def test_disconnect_without_stream_closes_the_generator(server):
    server.manager.hang_after = 0
    body = {"messages": [{"role": "user", "content": "x"}]}
    with server.listening() as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/chat/completions", json=body, timeout=0.3)
        assert server.manager.closed.wait(10)


# --- the official client


def client_call(server, call):
    async def run():
        http_client = httpx.AsyncClient(transport=httpx.ASGITransport(server.app))
        async with openai.AsyncOpenAI(
            base_url="http://test/v1", api_key="key", http_client=http_client, max_retries=0
        ) as client:
            return await call(client)

    return asyncio.run(run())


MESSAGES = [{"role": "user", "content": "hi"}]


def test_official_client(make_server):
    server = make_server(api_key="key")

    async def call(client):
        models = await client.models.list()
        answer = await client.chat.completions.create(
            model=models.data[0].id, messages=MESSAGES, logprobs=True, top_logprobs=1
        )
        stream = await client.chat.completions.create(
            model="m", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        return answer, [chunk async for chunk in stream]

    answer, chunks = client_call(server, call)
    assert answer.choices[0].message.content == "Hello wörld"
    assert answer.choices[0].logprobs.content[0].top_logprobs[0].token == "Hel"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Hello wörld"
    assert chunks[-1].usage.completion_tokens == 3


def test_official_client_sees_errors(make_server):
    server = make_server(api_key="other")

    async def unauthorized(client):
        await client.chat.completions.create(model="m", messages=MESSAGES)

    with pytest.raises(openai.AuthenticationError):
        client_call(server, unauthorized)
    server = make_server()

    async def bad(client):
        await client.chat.completions.create(model="m", messages=MESSAGES, n=0)

    with pytest.raises(openai.BadRequestError, match="n:"):
        client_call(server, bad)

    async def missing(client):
        await client.models.retrieve("other/model")

    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client_call(server, missing)
