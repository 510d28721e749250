"""The native routes, the information and the management routes."""

from __future__ import annotations

from types import SimpleNamespace

import httpx
import pytest

from sglang.srt.managers.request_state import ServiceError
from sglang.srt.utils.errors import RequestError


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_generate(server, method):
    body = {"text": "ab", "sampling_params": {"max_new_tokens": 3}, "rid": "r"}
    response = server.request(method, "/generate", json=body)
    assert response.status_code == 200
    item = response.json()
    assert set(item) == {"text", "output_ids", "meta_info"}
    assert item["text"] == "Hello wörld" and item["meta_info"]["id"] == "r"
    assert server.last.sampling_params == {"max_new_tokens": 3}


def test_generate_makes_a_request_id(server):
    server.post("/generate", {"text": "a"})
    first = server.last.rid
    server.post("/generate", {"text": "a"})
    assert first and server.last.rid and first != server.last.rid


def test_generate_batch(server):
    items = server.post("/generate", {"text": ["a", "bc"]}).json()
    assert [item["meta_info"]["prompt_tokens"] for item in items] == [1, 2]


def test_generate_stream(server, events):
    response = server.post("/generate", {"input_ids": [1, 2], "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    items = events(response.text)
    assert [item["text"] for item in items] == ["Hel", "Hello", "Hello wörld"]
    assert items[-1]["meta_info"]["finish_reason"] == {"type": "stop", "matched": 7}


def test_bad_value(server):
    server.manager.error = RequestError("unknown sampling parameter 'temprature'")
    response = server.post("/generate", {"text": "a", "sampling_params": {"temprature": 1}})
    assert response.status_code == 400
    assert response.json() == {"error": {"message": "unknown sampling parameter 'temprature'"}}


def test_bad_value_in_a_stream(server, events):
    server.manager.error = RequestError("no")
    response = server.post("/generate", {"text": "a", "stream": True})
    assert response.status_code == 200
    assert events(response.text) == [{"error": {"message": "no"}}]


def test_unexpected_error_in_a_stream_says_nothing_about_the_inside(server, events):
    server.manager.error, server.manager.error_after = KeyError("secret"), 1
    response = server.post("/generate", {"text": "a", "stream": True})
    assert events(response.text)[-1] == {"error": {"message": "internal server error"}}


def test_service_error(server):
    server.manager.error = ServiceError("The request queue is full.", 503)
    response = server.post("/generate", {"text": "a"})
    assert response.status_code == 503
    assert response.json() == {
        "object": "error",
        "message": "The request queue is full.",
        "type": "503",
        "param": None,
        "code": 503,
    }


@pytest.mark.parametrize(
    "body", [{"text": 5}, {"input_ids": ["a"]}, {"stream": "perhaps"}, [], "x"]
)
def test_invalid_body(server, body):
    response = server.post("/generate", body)
    assert response.status_code == 400
    assert response.json()["type"] == "Bad Request" and response.json()["code"] == 400


@pytest.mark.parametrize("content", ["", "{", '{"text": ', "[" * 5000])
def test_broken_json(server, content):
    response = server.request(
        "POST", "/generate", content=content, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400 and response.json()["object"] == "error"


@pytest.mark.parametrize("field", ["lora_path", "session_params", "return_hidden_states"])
def test_unsupported_fields_are_refused_when_set(server, field):
    response = server.post("/generate", {"text": "a", field: "x"})
    assert response.status_code == 400 and field in response.json()["error"]["message"]
    assert server.post("/generate", {"text": "a", field: None}).status_code == 200
    assert server.post("/generate", {"text": ["a"], field: [None]}).status_code == 200


def test_infinite_logprobs_are_valid_json(server):
    server.manager.item = lambda *args: {"text": "", "meta_info": {"x": float("-inf")}}
    assert server.post("/generate", {"text": "a"}).json()["meta_info"] == {"x": None}


def test_disconnect_closes_the_generator(server):
    server.manager.hang_after = 1
    with server.listening() as url:
        body = {"text": "a", "stream": True}
        with httpx.stream("POST", f"{url}/generate", json=body) as response:
            assert next(response.iter_text()).startswith("data: ")
        assert server.manager.closed.wait(10)


@pytest.mark.parametrize(
    "path", ["/encode", "/classify", "/v1/embeddings", "/v1/rerank", "/v1/classify", "/v1/score"]
)
def test_wrong_kind_of_model(server, path):
    response = server.post(path, {"text": "a"})
    assert response.status_code == 400 and "--is-embedding" in response.text
    assert "not implemented yet" in response.text  # nobody is sent to a flag that is refused
    assert ("object" in response.json()) == path.startswith("/v1/")


# --- information


@pytest.mark.parametrize("path", ["/model_info", "/get_model_info"])
def test_model_info(server, path):
    assert server.get(path).json() == server.manager.model_info


@pytest.mark.parametrize("path", ["/server_info", "/get_server_info"])
def test_server_info(server, path):
    body = server.get(path).json()
    assert body["status"] == "ready" and body["internal_states"][0]["num_running_reqs"] == 2


def test_get_load(server):
    (load,) = server.get("/get_load").json()
    assert set(load) == {"dp_rank", "num_reqs", "num_waiting_reqs", "num_tokens", "ts_tic"}
    assert (load["num_reqs"], load["num_waiting_reqs"], load["num_tokens"]) == (3, 1, 40)


def test_metrics(server):
    response = server.get("/metrics")
    assert response.status_code == 404 and "--enable-metrics" in response.json()["message"]

    async def render():
        return b"sglang:num_requests_total 1\n"

    server.manager.metrics, server.manager.render_metrics = object(), render
    response = server.get("/metrics")
    assert response.text == "sglang:num_requests_total 1\n"
    assert response.headers["content-type"].startswith("text/plain")


def test_openapi(server, make_server, monkeypatch):
    paths = server.get("/openapi.json").json()["paths"]
    assert {"/generate", "/v1/chat/completions", "/health", "/flush_cache"} <= set(paths)
    monkeypatch.setenv("DISABLE_OPENAPI_DOC", "1")
    assert make_server().get("/openapi.json").status_code == 404


def test_unknown_route_and_method(server):
    response = server.get("/nope")
    assert response.status_code == 404 and response.json()["code"] == 404
    assert server.get("/generate").status_code == 405


# --- management


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_flush_cache(server, method):
    assert server.request(method, "/flush_cache").status_code == 200
    server.manager.flush_reply = SimpleNamespace(success=False, message="2 requests are running")
    response = server.request(method, "/flush_cache")
    assert response.status_code == 400 and "2 requests are running" in response.text


def test_abort_request(server):
    assert server.post("/abort_request", {"rid": "unknown"}).status_code == 200
    assert server.post("/abort_request", {"abort_all": True}).status_code == 200
    assert server.manager.aborted == [
        {"rid": "unknown", "abort_all": False},
        {"rid": "", "abort_all": True},
    ]


def test_abort_of_the_empty_id_is_not_an_abort_of_everything(server):
    assert server.post("/abort_request", {"rid": ""}).status_code == 400
    assert not server.manager.aborted
