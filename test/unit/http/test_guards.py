"""What stands before the routes: keys, bodies, origins; and what the table of routes promises."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from sglang.srt.entrypoints.http import management_routes, middleware

ROUTES_PAGE = Path(__file__).resolve().parents[3] / "docs" / "references" / "routes.md"


def call(server, path, key=None, method="GET"):
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return server.request(method, path, headers=headers).status_code


@pytest.mark.parametrize(
    ("keys", "normal", "management"),
    [
        ({}, {None: 200, "k": 200}, {None: 200, "k": 200}),
        ({"api_key": "k"}, {None: 401, "k": 200, "x": 401}, {None: 401, "k": 200, "x": 401}),
        ({"admin_api_key": "a"}, {None: 200, "a": 200}, {None: 401, "a": 200, "k": 401}),
        (
            {"api_key": "k", "admin_api_key": "a"},
            {None: 401, "k": 200, "a": 401},
            {None: 401, "k": 401, "a": 200},
        ),
    ],
)
def test_keys(make_server, keys, normal, management):
    server = make_server(**keys)
    for key, status in normal.items():
        assert call(server, "/v1/models", key) == status
    for key, status in management.items():
        assert call(server, "/flush_cache", key) == status
        assert call(server, "/flush_cache", key, "POST") == status


def test_denial_body(make_server):
    response = make_server(api_key="k").get("/v1/models")
    assert (response.status_code, response.json()) == (401, {"error": "Unauthorized"})


def test_probes_need_no_key(make_server):
    server = make_server(api_key="k", admin_api_key="a")
    assert call(server, "/health") == 200
    assert call(server, "/health_generate") == 200
    assert call(server, "/metrics") == 404  # off, but not refused


@pytest.mark.parametrize(
    "path", ["/flush_cache/", "//flush_cache", "/flush_cache%2F", "/FLUSH_CACHE"]
)
def test_other_spellings_reach_no_management_route(make_server, path):
    server = make_server(admin_api_key="a")
    assert call(server, path) == 404


def test_every_route_but_the_probes_asks_for_the_key(make_server):
    server = make_server(api_key="k")
    for path, methods in routes(server).items():
        for method in methods - {"OPTIONS"}:
            expected_open = path.startswith(("/health", "/metrics"))
            status = call(server, path, method=method)
            assert (status == 401) != expected_open, f"{method} {path} answered {status}"


def routes(server):
    found = {}
    for path, operations in (
        server.get("/openapi.json", headers={"authorization": "Bearer k"}).json()["paths"].items()
    ):
        found[path.replace("{model_id}", "x")] = {method.upper() for method in operations}
    return {**found, "/openapi.json": {"GET"}}


def test_behind_a_proxy_prefix(make_server):
    server = make_server(admin_api_key="a", fastapi_root_path="/prefix")
    assert call(server, "/prefix/flush_cache") == 401
    assert call(server, "/prefix/flush_cache", "a") == 200


def test_routes_page_names_every_route_and_its_guard(server):
    """docs/references/routes.md is the list that operators rely on."""
    rows = re.findall(
        r"^\| `([^`]+)` \| ([A-Z, ]+) \| (open|key|management)",
        ROUTES_PAGE.read_text("utf-8"),
        re.M,
    )
    documented = {path: (set(methods.split(", ")), guard) for path, methods, guard in rows}
    paths = server.get("/openapi.json").json()["paths"]
    actual = {path: {method.upper() for method in operations} for path, operations in paths.items()}
    actual |= {"/openapi.json": {"GET"}, "/docs": {"GET"}}
    assert {path: methods for path, (methods, _) in documented.items()} == actual
    for path, (_, guard) in documented.items():
        if path in management_routes.PATHS:
            assert guard == "management"
        else:
            assert guard == ("open" if path.startswith(("/health", "/metrics")) else "key")


# --- bodies


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_bodies_must_be_json(server, kind):
    response = server.request(
        "POST", "/generate", content='{"text": "a"}', headers={"content-type": kind}
    )
    assert response.status_code == 400
    assert (
        response.json()["type"] == "Bad Request"
        and "application/json" in response.json()["message"]
    )
    assert not server.manager.requests


def test_charset_is_fine(server):
    headers = {"content-type": "application/json; charset=utf-8"}
    assert (
        server.request("POST", "/generate", content='{"text": "a"}', headers=headers).status_code
        == 200
    )


@pytest.mark.parametrize("announced", [True, False])
def test_large_bodies_are_refused(server, monkeypatch, announced):
    from sglang.srt.entrypoints.http.app import create_app

    monkeypatch.setattr(middleware.BodyMiddleware.__init__, "__defaults__", (100,))
    server.app = create_app(server.state)
    body = b'{"text": "' + b"a" * 200 + b'"}'

    async def chunks():
        yield body[:90]
        yield body[90:]

    headers = {"content-type": "application/json"}
    content = body if announced else chunks()
    response = server.request("POST", "/generate", content=content, headers=headers)
    assert response.status_code == 413 and response.json()["code"] == 413
    assert not server.manager.requests
    assert server.post("/generate", {"text": "short"}).status_code == 200


def test_large_headers_are_refused(server):
    response = server.get("/model_info", headers={"x": "a" * (middleware.MAX_HEADER_BYTES + 1)})
    assert response.status_code == 431


# --- origins


def test_cors_is_open(make_server):
    server = make_server(api_key="k")
    headers = {
        "origin": "http://elsewhere",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    response = server.request("OPTIONS", "/v1/chat/completions", headers=headers)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "*"
    # A page can also read why it was refused.
    response = server.get("/v1/models", headers={"origin": "http://elsewhere"})
    assert response.status_code == 401 and response.headers["access-control-allow-origin"] == "*"


# --- health


def test_health_while_starting_and_stopping(make_server):
    from sglang.srt.entrypoints.http.state import ServerStatus

    server = make_server(ready=False)
    for status, expected in (
        (ServerStatus.STARTING, 503),
        (ServerStatus.READY, 200),
        (ServerStatus.STOPPING, 503),
    ):
        server.state.status = status
        assert server.get("/health").status_code == expected
        assert server.get("/health_generate").status_code == expected


def test_health_generates_one_token(server, monkeypatch):
    server.get("/health")
    assert server.last.sampling_params["max_new_tokens"] == 1 and server.last.log_metrics is False
    monkeypatch.setenv("SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION", "false")
    server.manager.requests.clear()
    assert server.get("/health").status_code == 200 and not server.manager.requests
    assert server.get("/health_generate").status_code == 200 and server.manager.requests


def test_health_without_an_answer(server, monkeypatch):
    monkeypatch.setenv("SGLANG_HEALTH_CHECK_TIMEOUT", "0.1")
    server.manager.hang_after = 0
    assert server.get("/health").status_code == 503
    assert server.manager.closed.is_set(), "the probe must not stay behind"


def test_health_of_a_dead_scheduler(server):
    server.manager.is_alive = False
    assert server.get("/health").status_code == 503
    assert not server.manager.requests


def test_health_of_a_busy_engine_needs_no_token(server, monkeypatch):
    import time

    server.manager.num_in_flight, server.manager.last_receive_ts = 5, time.monotonic()
    assert server.get("/health").status_code == 200
    assert not server.manager.requests


# --- warm-up


def test_warmup_makes_ready(make_server, caplog):
    from sglang.srt.entrypoints.http.warmup import become_ready

    server = make_server(ready=False)
    with caplog.at_level("INFO"):
        asyncio.run(become_ready(server.state))
    assert server.manager.requests and server.get("/health").status_code == 200
    assert "fired up and ready to roll" in caplog.text


def test_warmup_can_be_skipped(make_server):
    from sglang.srt.entrypoints.http.warmup import become_ready

    server = make_server(ready=False, skip_server_warmup=True)
    asyncio.run(become_ready(server.state))
    assert not server.manager.requests and server.get("/health").status_code == 200


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_a_body_that_is_no_json_says_so_and_where(make_server, path):
    headers = {"content-type": "application/json"}
    response = make_server().request("POST", path, content=b'{"a": 1, b', headers=headers)
    assert response.status_code == 400
    assert "the body is not valid JSON: " in response.json()["message"]
    assert response.json()["message"].endswith("(character 9)")
