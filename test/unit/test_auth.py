"""Who may call which route: the whole table of keys and levels."""

from __future__ import annotations

import hmac

import pytest

from sglang.srt.utils import auth
from sglang.srt.utils.auth import AuthLevel, decide_request_auth

KEY, ADMIN = "user-key", "admin-key"
NORMAL, OPTIONAL, FORCE = AuthLevel.NORMAL, AuthLevel.ADMIN_OPTIONAL, AuthLevel.ADMIN_FORCE


def status(
    sent: str | None,
    api_key: str | None,
    admin_key: str | None,
    level: AuthLevel,
    method: str = "POST",
    path: str = "/generate",
) -> int:
    header = None if sent is None else f"Bearer {sent}"
    decision = decide_request_auth(method, path, header, api_key, admin_key, level)
    assert decision.allowed == (decision.status_code == 200)
    return decision.status_code


@pytest.mark.parametrize(
    ("level", "api_key", "admin_key", "nothing", "key", "admin"),
    [
        # level, configured keys, then the answer to: no key, the API key, the admin key
        (NORMAL, None, None, 200, 200, 200),
        (NORMAL, KEY, None, 401, 200, 401),
        (NORMAL, None, ADMIN, 200, 200, 200),
        (NORMAL, KEY, ADMIN, 401, 200, 401),
        (OPTIONAL, None, None, 200, 200, 200),
        (OPTIONAL, KEY, None, 401, 200, 401),
        (OPTIONAL, None, ADMIN, 401, 401, 200),
        (OPTIONAL, KEY, ADMIN, 401, 401, 200),
        (FORCE, None, None, 403, 403, 403),
        (FORCE, KEY, None, 403, 403, 403),
        (FORCE, None, ADMIN, 401, 401, 200),
        (FORCE, KEY, ADMIN, 401, 401, 200),
    ],
)
def test_table(
    level: AuthLevel,
    api_key: str | None,
    admin_key: str | None,
    nothing: int,
    key: int,
    admin: int,
) -> None:
    assert status(None, api_key, admin_key, level) == nothing
    assert status(KEY, api_key, admin_key, level) == key
    assert status(ADMIN, api_key, admin_key, level) == admin


@pytest.mark.parametrize("level", list(AuthLevel))
def test_probes_and_preflights_are_always_open(level: AuthLevel) -> None:
    for path in ("/health", "/health_generate", "/metrics", "/metrics/"):
        assert status(None, KEY, ADMIN, level, "GET", path) == 200
    assert status(None, KEY, ADMIN, level, "OPTIONS") == 200
    assert status(None, KEY, ADMIN, level, "options") == 200
    assert status(None, KEY, ADMIN, level, "GET", "/v1/health") == 401


@pytest.mark.parametrize(
    "header",
    [
        "",
        KEY,
        "Bearer",
        "Bearer ",
        f"Basic {KEY}",
        f"Bearer {KEY}x",
        f"Bearer{KEY}",
        "Bearer \udcff",
    ],
)
def test_malformed_headers_are_refused(header: str) -> None:
    assert decide_request_auth("GET", "/x", header, KEY, None, NORMAL).status_code == 401


def test_scheme_is_case_insensitive_and_keys_may_be_any_text() -> None:
    assert decide_request_auth("GET", "/x", f"bearer {KEY}", KEY, None, NORMAL).allowed
    assert decide_request_auth("GET", "/x", "Bearer schlüssel", "schlüssel", None, NORMAL).allowed


def test_comparison_is_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    original = hmac.compare_digest

    def spy(sent: bytes, key: bytes) -> bool:
        compared.append((sent, key))
        return original(sent, key)

    monkeypatch.setattr(auth.hmac, "compare_digest", spy)
    for header in (None, "Bearer wrong", f"Basic {KEY}"):
        assert not decide_request_auth("GET", "/x", header, KEY, None, NORMAL).allowed
    assert [key for _, key in compared] == [KEY.encode()] * 3
