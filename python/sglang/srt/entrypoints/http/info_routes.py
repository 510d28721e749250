"""What a server says about itself: model, settings, load, metrics."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sglang.srt.entrypoints.http.state import server_state
from sglang.srt.entrypoints.http.streaming import JSONResponse

router = APIRouter(tags=["information"])


@router.get("/model_info")
@router.get("/get_model_info", deprecated=True)
async def model_info(request: Request) -> Any:
    """The served model."""
    return JSONResponse(server_state(request).manager.model_info)


@router.get("/server_info")
@router.get("/get_server_info", deprecated=True)
async def server_info(request: Request) -> Any:
    """Flags, limits and the state of the scheduler."""
    state = server_state(request)
    info = await state.manager.get_server_info()
    return JSONResponse({**info, "status": state.status.value})


@router.get("/get_load")
async def get_load(request: Request) -> Any:
    """Requests and tokens in the scheduler, one entry per data-parallel rank."""
    scheduler = await server_state(request).manager.get_internal_state()
    return JSONResponse(
        [
            {
                "dp_rank": 0,
                "num_reqs": scheduler["num_running_reqs"] + scheduler["num_queue_reqs"],
                "num_waiting_reqs": scheduler["num_queue_reqs"],
                "num_tokens": scheduler["num_used_tokens"],
                "ts_tic": time.monotonic(),
            }
        ]
    )


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus text, with `--enable-metrics`."""
    manager = server_state(request).manager
    if manager.metrics is None:
        raise HTTPException(404, "metrics are off; start the server with --enable-metrics")
    text = await manager.render_metrics()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
