"""Error envelopes: one shape per kind of route, and the handlers that turn exceptions into them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sglang.srt.entrypoints.http.streaming import ClientGoneError, JSONResponse
from sglang.srt.managers.request_state import ServiceError
from sglang.srt.utils.errors import RequestError

logger = logging.getLogger(__name__)

_OPENAI_PATHS = ("/v1/", "/tokenize", "/detokenize")
# What proxies use for "the client closed the connection"; no client sees it.
_CLIENT_GONE = 499
_OPENAI_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    413: "BadRequestError",
    429: "RateLimitError",
    500: "InternalServerError",
}


def envelope(message: str, error_type: str, code: int) -> dict[str, Any]:
    """The flat envelope of OpenAI routes, HTTP exceptions and body validation."""
    return {"object": "error", "message": message, "type": error_type, "param": None, "code": code}


def native_envelope(message: str) -> dict[str, Any]:
    return {"error": {"message": message}}


def openai_envelope(message: str, code: int = 400) -> dict[str, Any]:
    return envelope(message, _OPENAI_TYPES.get(code, str(code)), code)


def service_envelope(message: str, code: int) -> dict[str, Any]:
    return envelope(message, str(code), code)


def validation_envelope(message: str) -> dict[str, Any]:
    return envelope(message, "Bad Request", 400)


def abort_error(finish_reason: dict[str, Any] | None) -> Exception | None:
    """The error behind an abort that is not the client's wish; None for every other end."""
    if not finish_reason or finish_reason.get("type") != "abort":
        return None
    code = finish_reason.get("status_code")
    if code is None:
        return None
    message = finish_reason.get("message") or "the request was aborted"
    return RequestError(message) if code == 400 else ServiceError(message, code)


def openai_stream_error(error: Exception) -> dict[str, Any]:
    """Body of an error event of an OpenAI stream."""
    return {"error": _openai_body(error)}


def native_stream_error(error: Exception) -> dict[str, Any]:
    """Body of an error event of a native stream."""
    if isinstance(error, (RequestError, ServiceError)):
        return native_envelope(str(error))
    logger.error("request failed", exc_info=error)
    return native_envelope("internal server error")


def _openai_body(error: Exception) -> dict[str, Any]:
    if isinstance(error, RequestError):
        return openai_envelope(str(error), error.status_code)
    if isinstance(error, ServiceError):
        return service_envelope(str(error), error.status_code)
    logger.error("request failed", exc_info=error)
    return openai_envelope("internal server error", 500)


def install_error_handlers(app: FastAPI) -> None:
    """Every exception of a route becomes an envelope; no other request notices."""

    @app.exception_handler(RequestError)
    async def on_request_error(request: Request, error: RequestError) -> Response:
        if _is_openai(request):
            return JSONResponse(_openai_body(error), error.status_code)
        return JSONResponse(native_envelope(str(error)), error.status_code)

    @app.exception_handler(ServiceError)
    async def on_service_error(request: Request, error: ServiceError) -> Response:
        return JSONResponse(service_envelope(str(error), error.status_code), error.status_code)

    @app.exception_handler(RequestValidationError)
    async def on_validation_error(request: Request, error: RequestValidationError) -> Response:
        return JSONResponse(validation_envelope(_validation_message(error.errors())), 400)

    @app.exception_handler(HTTPException)
    async def on_http_exception(request: Request, error: HTTPException) -> Response:
        body = service_envelope(str(error.detail), error.status_code)
        return JSONResponse(body, error.status_code, headers=dict(error.headers or {}))

    @app.exception_handler(ClientGoneError)
    async def on_client_gone(request: Request, error: ClientGoneError) -> Response:
        return Response(status_code=_CLIENT_GONE)

    @app.exception_handler(Exception)
    async def on_any_other(request: Request, error: Exception) -> Response:
        # The server's error middleware logs the traceback; the client learns nothing about the inside.
        if _is_openai(request):
            return JSONResponse(openai_envelope("internal server error", 500), 500)
        return JSONResponse(service_envelope("internal server error", 500), 500)


def _is_openai(request: Request) -> bool:
    return request.url.path.startswith(_OPENAI_PATHS)


def _validation_message(errors: Sequence[Any]) -> str:
    """`messages.0.role: Input should be ...; n: ...`, without the input, which may be large."""
    parts = []
    for error in errors[:10]:
        if error.get("type") == "json_invalid":
            place = error.get("loc", ())[-1]
            reason = error.get("ctx", {}).get("error", "it cannot be read")
            parts.append(f"the body is not valid JSON: {reason} (character {place})")
            continue
        where = ".".join(str(part) for part in error.get("loc", ())[1:]) or "body"
        context = error.get("ctx", {}).get("error")
        parts.append(f"{where}: {context if isinstance(context, str) else error.get('msg')}")
    return "; ".join(parts)[:2000] or "the body is not valid"
