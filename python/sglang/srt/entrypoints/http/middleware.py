"""What happens to a request before any route sees it: the key check, the type of the body and its size."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sglang.srt.entrypoints.http.errors import service_envelope, validation_envelope
from sglang.srt.entrypoints.http.streaming import JSONResponse
from sglang.srt.utils.auth import AuthLevel, decide_request_auth

MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_HEADER_BYTES = 64 * 1024
# Of a refused body.
MAX_DISCARDED_BYTES = 4 * MAX_BODY_BYTES

_DENIALS = {401: "Unauthorized", 403: "Forbidden"}


class AuthMiddleware:
    """Refuses requests without the key that their route asks for; knows no route but the management ones."""

    def __init__(
        self,
        app: ASGIApp,
        api_key: str | None,
        admin_api_key: str | None,
        management_paths: Collection[str],
    ) -> None:
        self._app = app
        self._api_key = api_key
        self._admin_api_key = admin_api_key
        self._management_paths = frozenset(management_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = _route_path(scope)
        is_management = path in self._management_paths
        decision = decide_request_auth(
            scope["method"],
            path,
            Headers(scope=scope).get("authorization"),
            self._api_key,
            self._admin_api_key,
            AuthLevel.ADMIN_OPTIONAL if is_management else AuthLevel.NORMAL,
        )
        if decision.allowed:
            await self._app(scope, receive, send)
            return
        denial = JSONResponse({"error": _DENIALS[decision.status_code]}, decision.status_code)
        await denial(scope, receive, send)


class BodyMiddleware:
    """Bodies are JSON and of a bounded size; headers too are bounded."""

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is not None:
            await _discard_body(receive, MAX_DISCARDED_BYTES)
            await refusal(scope, receive, send)
        else:
            await self._app(scope, self._counting(receive), send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            message = f"the headers are larger than {MAX_HEADER_BYTES} bytes"
            return JSONResponse(service_envelope(message, 431), 431)
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._max_bytes:
            return JSONResponse(service_envelope(self._too_large(), 413), 413)
        has_body = length != "0" or "transfer-encoding" in headers
        if scope["method"] in ("POST", "PUT") and has_body and not _is_json(headers):
            message = "the body must be JSON; send the header Content-Type: application/json"
            return JSONResponse(validation_envelope(message), 400)
        return None

    def _counting(self, receive: Receive) -> Receive:
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise HTTPException(413, self._too_large())
            return message

        return counted

    def _too_large(self) -> str:
        return f"the body is larger than {self._max_bytes} bytes"


async def _discard_body(receive: Receive, max_bytes: int) -> None:
    """Take what the client sends: many read no answer before all of it is sent, and see a broken connection instead."""
    has_more = True
    while has_more and max_bytes > 0:
        message = await receive()
        has_more = message.get("more_body", False)
        max_bytes -= len(message.get("body", b""))


def _is_json(headers: Headers) -> bool:
    media_type = headers.get("content-type", "").partition(";")[0]
    return media_type.strip().lower() == "application/json"


def _route_path(scope: Scope) -> str:
    """The path that routes are matched with, without the prefix of a proxy."""
    path, root = scope["path"], scope.get("root_path", "")
    if root and (path == root or path.startswith(root + "/")):
        return path[len(root) :]
    return path
