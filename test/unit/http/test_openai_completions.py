"""`/v1/completions`, `/v1/models`, `/tokenize` and `/detokenize`."""

from __future__ import annotations

import pytest


def complete(server, prompt="ab", **fields):
    return server.post("/v1/completions", {"prompt": prompt, **fields})


def test_answer(server):
    body = complete(server, rid="r").json()
    assert set(body) == {"id", "object", "created", "model", "choices", "usage", "metadata"}
    assert (body["id"], body["object"], body["model"]) == ("r", "text_completion", "default")
    (choice,) = body["choices"]
    assert choice == {
        "index": 0,
        "text": "Hello wörld",
        "logprobs": None,
        "finish_reason": "stop",
        "matched_stop": 7,
    }
    assert body["usage"]["prompt_tokens"] == 2
    assert server.last.text == "ab"
    assert server.last.sampling_params["max_new_tokens"] == 16
    assert server.last.sampling_params["temperature"] == 1.0


@pytest.mark.parametrize(
    ("prompt", "field"),
    [("ab", "text"), (["ab", "c"], "text"), ([1, 2], "input_ids"), ([[1], [2, 3]], "input_ids")],
)
def test_prompt_forms(server, prompt, field):
    assert complete(server, prompt).status_code == 200
    assert getattr(server.last, field) == prompt


def test_choices_are_ordered_by_prompt_then_sample(server):
    body = complete(server, ["a", "bcd"], n=2, echo=True).json()
    assert [c["index"] for c in body["choices"]] == [0, 1, 2, 3]
    assert [c["text"][:-11] for c in body["choices"]] == ["a", "a", "bcd", "bcd"]
    assert body["usage"]["prompt_tokens"] == 1 + 3
    assert body["usage"]["completion_tokens"] == 12


def test_echo_of_ids(server):
    ids = server.manager.tokenizer.encode("xyz")
    assert complete(server, ids, echo=True).json()["choices"][0]["text"] == "xyzHello wörld"


def test_pieces_without_text_are_not_streamed(server, events):
    server.manager.pieces = ["Hel", "", "lo", ""]
    choices = [e["choices"][0] for e in events(complete(server, stream=True).text)]
    assert [choice["text"] for choice in choices] == ["Hel", "lo", ""]
    assert choices[-1]["finish_reason"] == "stop"


def test_logprobs(server):
    logprobs = complete(server, logprobs=2).json()["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["Hel", "lo", " wörld"],
        "token_logprobs": [-0.5, -1.0, -1.5],
        "top_logprobs": [
            {"Hel": -0.5, "other": -9.0},
            {"lo": -1.0, "other": -9.0},
            {" wörld": -1.5, "other": -9.0},
        ],
        "text_offset": [-1, -1, -1],
    }
    assert server.last.top_logprobs_num == 2 and server.last.logprob_start_len == -1


def test_logprobs_zero_gives_the_chosen_token_only(server):
    logprobs = complete(server, logprobs=0).json()["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == [-0.5, -1.0, -1.5] and logprobs["top_logprobs"] == []


def test_echo_with_logprobs_includes_the_prompt(server):
    logprobs = complete(server, "ab", logprobs=1, echo=True).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", "b", "Hel", "lo", " wörld"]
    assert logprobs["token_logprobs"][:2] == [None, -1.0]
    assert logprobs["top_logprobs"][0] is None
    assert server.last.logprob_start_len == 0


def test_json_schema_field(server):
    complete(server, json_schema='{"type": "string"}')
    assert server.last.sampling_params["json_schema"] == '{"type": "string"}'


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ""},
        {"prompt": []},
        {"prompt": ["a", ""]},
        {"prompt": [[1], []]},
        {"prompt": None},
        {"max_tokens": 0},
        {"suffix": "x"},
        {"best_of": 4},
        {"logprobs": -1},
        {"echo": True, "prompt": [10**30]},
        {"json_schema": "{}", "response_format": {"type": "json_object"}},
        {"json_schema": "{}", "regex": "a"},
    ],
)
def test_refused(server, fields):
    response = server.post("/v1/completions", {"prompt": "a", **fields})
    assert response.status_code == 400
    assert response.json()["object"] == "error" and response.json()["message"]
    assert not server.manager.requests


def test_stream(server, events):
    response = complete(
        server, ["a", "b"], stream=True, echo=True, stream_options={"include_usage": True}
    )
    chunks = events(response.text)
    usage = chunks.pop()
    assert usage["choices"] == [] and usage["usage"]["prompt_tokens"] == 2
    for index, prompt in enumerate("ab"):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert [c["text"] for c in mine] == [prompt + "Hel", "lo", " wörld", ""]
        assert [c["finish_reason"] for c in mine] == [None, None, None, "stop"]
    assert all(c["object"] == "text_completion" and c["usage"] is None for c in chunks)


def test_stream_logprobs(server, events):
    chunks = events(complete(server, "ab", stream=True, echo=True, logprobs=0).text)
    found = [c["choices"][0]["logprobs"] for c in chunks[:-1]]
    assert [logprobs["tokens"] for logprobs in found] == [["a", "b", "Hel"], ["lo"], [" wörld"]]


# --- models


def test_models(server):
    (card,) = server.get("/v1/models").json()["data"]
    assert set(card) == {"id", "object", "created", "owned_by", "root", "parent", "max_model_len"}
    assert card["id"] == "fake" and card["max_model_len"] == 2048
    assert server.get("/v1/models/fake").json() == card


def test_model_with_slashes(make_server):
    server = make_server(served_model_name="org/name")
    assert server.get("/v1/models/org/name").json()["id"] == "org/name"


def test_unknown_model(server):
    response = server.get("/v1/models/nope")
    assert response.status_code == 404
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == (
        "invalid_request_error",
        "model",
        "model_not_found",
    )


# --- tokenizer


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_tokenize_and_back(server, prefix):
    ids = server.manager.tokenizer.encode("héy")
    body = server.post(f"{prefix}/tokenize", {"prompt": "héy"}).json()
    assert body == {"tokens": ids, "count": len(ids), "max_model_len": 2048}
    assert server.post(f"{prefix}/detokenize", {"tokens": ids}).json() == {"text": "héy"}


def test_tokenize_batch(server):
    body = server.post("/tokenize", {"prompt": ["a", "bc"]}).json()
    assert body["count"] == [1, 2] and len(body["tokens"][1]) == 2
    assert server.post("/detokenize", {"tokens": body["tokens"]}).json() == {"text": ["a", "bc"]}


def test_detokenize_special_tokens(server):
    ids = server.manager.tokenizer.encode("a<|im_end|>")
    assert server.post("/detokenize", {"tokens": ids}).json()["text"] == "a"
    body = {"tokens": ids, "skip_special_tokens": False}
    assert server.post("/detokenize", body).json()["text"] == "a<|im_end|>"


@pytest.mark.parametrize("tokens", [[-1], [10**9], [10**30], ["x"]])
def test_detokenize_refuses_unknown_ids(server, tokens):
    response = server.post("/detokenize", {"tokens": tokens})
    assert response.status_code == 400 and response.json()["object"] == "error"


def test_without_a_tokenizer_there_is_no_text_to_answer_with(server):
    server.manager.tokenizer = None
    for prompt in ("ab", [1, 2]):
        response = complete(server, prompt)
        assert response.status_code == 400
        assert "/generate with input_ids" in response.json()["message"]
