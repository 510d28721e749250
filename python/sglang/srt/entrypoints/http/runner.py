"""The uvicorn server around the application: ready line, warm-up, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from sglang.srt.entrypoints.http.app import create_app
from sglang.srt.entrypoints.http.middleware import MAX_HEADER_BYTES
from sglang.srt.entrypoints.http.state import ServerState, ServerStatus
from sglang.srt.entrypoints.http.warmup import become_ready
from sglang.srt.managers.request_state import ServiceError
from sglang.srt.utils.errors import RequestError

logger = logging.getLogger(__name__)

# Connections get this long to end after their requests were aborted, in seconds.
SHUTDOWN_PATIENCE = 5


class HttpServer(uvicorn.Server):
    """Serves one application until a signal or `fail`; `failure` then says why it ended, None for a wish."""

    def __init__(self, state: ServerState, on_ready: Callable[[], None] | None = None) -> None:
        super().__init__(_config(state))
        self.failure: str | None = None
        self._state = state
        self._on_ready = on_ready
        self._warmup: asyncio.Task[None] | None = None

    def fail(self, reason: str) -> None:
        """End the server with an error; callable from any thread."""
        self.failure = self.failure or reason
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            for listener in sockets or []:
                # With a socket of ours uvicorn leaves this line, which scripts look for, to us.
                host, port = listener.getsockname()[:2]
                logger.info("Uvicorn running on http://%s:%s (Press CTRL+C to quit)", host, port)
            self._warmup = asyncio.create_task(self._become_ready())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._state.status = ServerStatus.STOPPING
        if self._warmup is not None:
            self._warmup.cancel()
        with contextlib.suppress(ServiceError):  # there may be no scheduler any more
            self._state.manager.abort_request(abort_all=True)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Unlike the base class: the signal is not raised again afterwards, the exit code is 0.
        self.force_exit = self.should_exit
        self.should_exit = True

    async def _become_ready(self) -> None:
        try:
            await become_ready(self._state)
            if self._on_ready is not None:
                self._on_ready()
        except (RequestError, ServiceError, asyncio.TimeoutError) as error:
            self.fail(f"the warm-up request failed: {type(error).__name__}: {error}")


class _NoProbes(logging.Filter):
    """Keeps the polling of health checks and scrapers out of the access log."""

    def filter(self, record: logging.LogRecord) -> bool:
        # uvicorn's arguments: client, method, path, HTTP version, status
        path = record.args[2] if isinstance(record.args, tuple) and len(record.args) > 2 else ""
        return not str(path).startswith(("/health", "/metrics"))


def _config(state: ServerState) -> uvicorn.Config:
    logging.getLogger("uvicorn.access").addFilter(_NoProbes())
    level = (state.server_args.log_level_http or state.server_args.log_level).lower()
    return uvicorn.Config(
        create_app(state),
        log_config=None,  # the log of the process
        log_level=level,
        access_log=level in ("info", "debug"),
        root_path=state.server_args.fastapi_root_path,
        server_header=False,
        # The parser that bounds what it buffers of a header.
        http="h11",
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        ws="none",
        timeout_graceful_shutdown=SHUTDOWN_PATIENCE,
        # Longer than what common proxies keep, so that they never meet a connection that is just closing.
        timeout_keep_alive=75,
    )
