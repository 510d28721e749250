"""The first request of a server, sent by itself, so that the first client does not pay for what is set up lazily."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from typing import TYPE_CHECKING

from sglang.srt.entrypoints.http.state import ServerState, ServerStatus
from sglang.srt.environ import envs
from sglang.srt.managers.io_struct import GenerateReqInput

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

logger = logging.getLogger(__name__)

_NUM_TOKENS = 4


async def become_ready(state: ServerState) -> None:
    """Warm up, then let `/health` answer 200 and say so in the log.

    Raises:
        RequestError, ServiceError: the engine cannot answer.
        TimeoutError: it did not answer within SGLANG_WARMUP_TIMEOUT.
    """
    if not state.server_args.skip_server_warmup:
        limit = envs.SGLANG_WARMUP_TIMEOUT.get()
        await asyncio.wait_for(_generate(state.manager), limit if limit >= 0 else None)
    if state.status is ServerStatus.STARTING:
        state.status = ServerStatus.READY
        # Scripts wait for these words.
        logger.info("The server is fired up and ready to roll!")


async def _generate(manager: TokenizerManager) -> None:
    obj = GenerateReqInput(
        input_ids=[0, 0, 0, 0],
        sampling_params={"max_new_tokens": _NUM_TOKENS, "temperature": 0.0, "ignore_eos": True},
        rid=f"WARMUP_{uuid.uuid4().hex}",
        log_metrics=False,
    )
    async with contextlib.aclosing(manager.generate_request(obj)) as items:  # type: ignore[type-var]
        async for _ in items:
            pass
