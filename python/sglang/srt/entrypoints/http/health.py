"""`/health` and `/health_generate`: whether the server would answer a request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from sglang.srt.entrypoints.http.state import ServerStatus, server_state
from sglang.srt.environ import envs
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.managers.request_state import ServiceError
from sglang.srt.utils.errors import RequestError

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

logger = logging.getLogger(__name__)

router = APIRouter(tags=["health"])
_POLL_SECONDS = 0.05


@router.get("/health")
async def health(request: Request) -> Response:
    """200 when the server answers; an idle engine is asked for one token, unless switched off."""
    state = server_state(request)
    manager = state.manager
    if state.status is not ServerStatus.READY or not manager.is_alive:
        return Response(status_code=503)
    if not envs.SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION.get():
        return Response(status_code=200)
    silence = time.monotonic() - manager.last_receive_ts
    if manager.num_in_flight > 0 and silence < envs.SGLANG_HEALTH_CHECK_TIMEOUT.get():
        return Response(status_code=200)
    return await _answer(manager)


@router.get("/health_generate")
async def health_generate(request: Request) -> Response:
    """200 when the engine generates a token now."""
    state = server_state(request)
    if state.status is not ServerStatus.READY or not state.manager.is_alive:
        return Response(status_code=503)
    return await _answer(state.manager)


async def _answer(manager: TokenizerManager) -> Response:
    is_healthy = await _answers_in_time(manager, envs.SGLANG_HEALTH_CHECK_TIMEOUT.get())
    if not is_healthy:
        logger.error("Health check failed: the scheduler did not answer")
    return Response(status_code=200 if is_healthy else 503)


async def _answers_in_time(manager: TokenizerManager, timeout: float) -> bool:
    """Ask for one token; any news from the scheduler will do, as the token may have to wait in a queue."""
    start = time.monotonic()
    probe = asyncio.ensure_future(_generate_token(manager))
    try:
        while time.monotonic() - start < timeout:
            await asyncio.wait({probe}, timeout=_POLL_SECONDS)
            if probe.done():
                return probe.result()
            if manager.last_receive_ts > start:
                return True
        return False
    finally:
        probe.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await probe


async def _generate_token(manager: TokenizerManager) -> bool:
    obj = GenerateReqInput(
        input_ids=[0],
        sampling_params={"max_new_tokens": 1, "temperature": 0.0},
        rid=f"HEALTH_CHECK_{uuid.uuid4().hex}",
        log_metrics=False,
    )
    try:
        async with contextlib.aclosing(manager.generate_request(obj)) as items:  # type: ignore[type-var]
            async for _ in items:
                pass
    except (RequestError, ServiceError) as error:
        logger.error("Health check failed: %s", error)
        return False
    return True
