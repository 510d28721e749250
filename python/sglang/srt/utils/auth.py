"""Who may call a route: a pure function of the request line, the keys and the level of the route.

It knows nothing about the web framework; `http_server` asks it once per request.
"""

from __future__ import annotations

import enum
import hmac
from typing import NamedTuple


class AuthLevel(str, enum.Enum):
    """How well a route is guarded."""

    NORMAL = "normal"  # guarded by the API key, when there is one
    ADMIN_OPTIONAL = "admin_optional"  # management: the admin key, else the API key, else open
    ADMIN_FORCE = "admin_force"  # only ever with the admin key


class AuthDecision(NamedTuple):
    """`status_code` is 200, 401 (wrong or missing key) or 403 (no key could ever open the route)."""

    allowed: bool
    status_code: int


_ALLOW = AuthDecision(True, 200)
_UNAUTHORIZED = AuthDecision(False, 401)
_FORBIDDEN = AuthDecision(False, 403)
# Probes and scrapers carry no key.
_OPEN_PATHS = ("/health", "/metrics")


def decide_request_auth(
    method: str,
    path: str,
    authorization_header: str | None,
    api_key: str | None,
    admin_api_key: str | None,
    auth_level: AuthLevel,
) -> AuthDecision:
    """Decide whether a request may pass.

    Args:
        method: HTTP method; `OPTIONS` (the CORS preflight) is always open.
        path: path of the URL, without the query and without the root path of a proxy.
        authorization_header: raw value of the `Authorization` header, or None.
        api_key: value of `--api-key`; an empty string counts as none.
        admin_api_key: value of `--admin-api-key`; an empty string counts as none.
        auth_level: level of the matched route.
    """
    if method.upper() == "OPTIONS" or _is_open_path(path):
        return _ALLOW
    if auth_level is AuthLevel.ADMIN_FORCE and not admin_api_key:
        return _FORBIDDEN
    required = api_key
    if auth_level is not AuthLevel.NORMAL and admin_api_key:
        required = admin_api_key
    if not required:
        return _ALLOW
    return _ALLOW if _carries_key(authorization_header, required) else _UNAUTHORIZED


def _is_open_path(path: str) -> bool:
    return any(path.startswith(prefix) for prefix in _OPEN_PATHS)


def _carries_key(authorization_header: str | None, key: str) -> bool:
    scheme, _, token = (authorization_header or "").partition(" ")
    # Compare always, whatever the scheme, so that time tells nothing about the header.
    matches = hmac.compare_digest(token.strip().encode("utf-8", "surrogatepass"), key.encode())
    return matches and scheme.lower() == "bearer"
