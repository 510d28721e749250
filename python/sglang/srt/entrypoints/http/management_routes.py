"""Routes that change the server; `PATHS` names them for the key check."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from sglang.srt.entrypoints.http.state import server_state
from sglang.srt.utils.errors import RequestError

router = APIRouter(tags=["management"])


class AbortBody(BaseModel):
    """Requests whose id starts with `rid`, or all of them."""

    rid: str = ""
    abort_all: bool = False


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


PATHS = frozenset(route.path for route in router.routes)  # type: ignore[attr-defined]
