"""Request logging at run time and the profiler's routes."""

from __future__ import annotations

import pytest

from sglang.srt.utils.errors import RequestError

OFF = {"log_requests": False, "log_requests_level": 2, "log_requests_format": "text"}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_configure_logging_without_a_body_says_what_holds(server, method):
    assert server.request(method, "/configure_logging").json() == OFF
    assert server.manager.request_logger is None


def test_configure_logging_switches_on_changes_and_off(make_server, tmp_path):
    server = make_server(log_requests_target=[str(tmp_path)])
    on = server.post("/configure_logging", {"log_requests": True, "log_requests_level": 1})
    assert on.json() == {**OFF, "log_requests": True, "log_requests_level": 1}
    logger = server.manager.request_logger
    assert logger.level == 1
    changed = server.post("/configure_logging", {"log_requests_format": "json"}).json()
    assert changed["log_requests_level"] == 1 and changed["log_requests_format"] == "json"
    assert server.manager.request_logger is logger
    assert server.post("/configure_logging", {"log_requests": False}).json() == OFF
    assert server.manager.request_logger is None


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"log_requests_level": 4}, "log_requests_level"),
        ({"log_requests": "perhaps"}, "log_requests"),
        ({"log_requests_format": "xml"}, "log_requests_format"),
        ({"log_request": True}, "log_request"),
        ({"dump_requests_folder": "/x"}, "dump_requests_folder"),
        ({"crash_dump_folder": "/x", "log_requests": True}, "crash_dump_folder"),
    ],
)
def test_configure_logging_refuses(server, body, word):
    response = server.post("/configure_logging", body)
    assert response.status_code == 400 and word in response.text
    assert server.manager.request_logger is None


def test_configure_logging_cannot_switch_on_what_the_environment_forbids(server, monkeypatch):
    monkeypatch.setenv("SGLANG_DISABLE_REQUEST_LOGGING", "true")
    response = server.post("/configure_logging", {"log_requests": True})
    assert response.status_code == 400 and "SGLANG_DISABLE_REQUEST_LOGGING" in response.text
    assert server.manager.request_logger is None
    assert server.post("/configure_logging", {"log_requests_level": 1}).status_code == 200


def test_profile_routes(server):
    started = server.post("/start_profile", {"num_steps": 3, "start_step": None})
    assert (started.status_code, started.text) == (200, "Recording to x\n")
    assert server.get("/start_profile").status_code == 200
    assert server.post("/stop_profile").text == "Recorded 1 steps to x\n"
    assert server.get("/stop_profile").status_code == 200
    assert server.manager.profile_calls == [{"num_steps": 3}, {}, "stop", "stop"]


def test_profile_refusal(server):
    server.manager.error = RequestError("a recording is running already")
    response = server.post("/start_profile", {"self": 1})
    assert response.status_code == 400 and "running already" in response.text
    assert server.post("/start_profile", [1]).status_code == 400
