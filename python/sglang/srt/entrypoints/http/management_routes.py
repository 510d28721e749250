"""Routes that change the server; `PATHS` names them for the key check."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from sglang.srt.entrypoints.http.state import ServerState, server_state
from sglang.srt.entrypoints.http.streaming import JSONResponse
from sglang.srt.observability.request_logger import RequestLogger
from sglang.srt.utils.errors import RequestError

router = APIRouter(tags=["management"])


class AbortBody(BaseModel):
    """Requests whose id starts with `rid`, or all of them."""

    rid: str = ""
    abort_all: bool = False


class LoggingBody(BaseModel):
    """Request logging; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid")

    log_requests: bool | None = None
    log_requests_level: Literal[0, 1, 2, 3] | None = None
    log_requests_format: Literal["text", "json"] | None = None

    # Known, not implemented: refused when set
    dump_requests_folder: Any = None
    dump_requests_threshold: Any = None
    crash_dump_folder: Any = None

    def given(self) -> dict[str, Any]:
        """Raises RequestError for a set field whose subject is not implemented, and where the environment forbids the logging."""
        given = self.model_dump(exclude_none=True)
        for name in ("dump_requests_folder", "dump_requests_threshold", "crash_dump_folder"):
            if name in given:
                raise RequestError(f"{name} is not supported by this server; leave it out")
        if given.get("log_requests") and RequestLogger.is_forbidden():
            raise RequestError(
                "requests are not logged by this server: SGLANG_DISABLE_REQUEST_LOGGING is set in its environment"
            )
        return given


@router.get("/flush_cache")
@router.post("/flush_cache")
async def flush_cache(request: Request) -> Any:
    """Forget all cached prefixes; refused while requests run or wait."""
    reply = await server_state(request).manager.flush_cache()
    if reply.success:
        return PlainTextResponse("Cache flushed.\n")
    message = reply.message or "requests are running or waiting; try again when there are none"
    return PlainTextResponse(f"Cache not flushed: {message}\n", 400)


@router.post("/abort_request")
async def abort_request(body: AbortBody, request: Request) -> Response:
    """End requests; unknown ids are no error."""
    if not body.rid and not body.abort_all:
        # Every id starts with the empty text.
        raise RequestError("give rid, or abort_all: true")
    server_state(request).manager.abort_request(rid=body.rid, abort_all=body.abort_all)
    return Response(status_code=200)


@router.get("/configure_logging")
@router.post("/configure_logging")
async def configure_logging(request: Request, body: LoggingBody | None = None) -> Any:
    """Change the logging of requests without a restart; answers with what holds now."""
    state = server_state(request)
    settings = {**_log_settings(state), **(body or LoggingBody()).given()}
    _apply_log_settings(state, **settings)
    return JSONResponse(_log_settings(state))


@router.get("/start_profile")
@router.post("/start_profile")
async def start_profile(
    request: Request, options: Annotated[dict[str, Any] | None, Body()] = None
) -> Response:
    """Record the operators of the scheduler's next steps."""
    given = {name: value for name, value in (options or {}).items() if value is not None}
    text = await server_state(request).manager.start_profile(given)
    return PlainTextResponse(f"{text}\n")


@router.get("/stop_profile")
@router.post("/stop_profile")
async def stop_profile(request: Request) -> Response:
    """Write what has been recorded; the answer names the file."""
    text = await server_state(request).manager.stop_profile()
    return PlainTextResponse(f"{text}\n")


def _log_settings(state: ServerState) -> dict[str, Any]:
    current, args = state.manager.request_logger, state.server_args
    return {
        "log_requests": current is not None,
        "log_requests_level": current.level if current else args.log_requests_level,
        "log_requests_format": current.format if current else args.log_requests_format,
    }


def _apply_log_settings(
    state: ServerState, log_requests: bool, log_requests_level: int, log_requests_format: str
) -> None:
    current = state.manager.request_logger
    if current is not None and log_requests:
        current.configure(log_requests_level, log_requests_format)
        return
    if current is not None:
        current.close()
    state.manager.request_logger = None
    if log_requests:
        targets = state.server_args.log_requests_target or ()
        state.manager.request_logger = RequestLogger(
            log_requests_level, log_requests_format, targets
        )


PATHS = frozenset(route.path for route in router.routes)  # type: ignore[attr-defined]
