"""The front's end of the sockets to the scheduler.

Messages are read from whatever event loop makes calls at the time: `bind_loop` is cheap to repeat, and what arrives while no loop runs
waits in the socket. So results of an engine built outside any loop reach calls in any later one.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from sglang.srt.managers.io_struct import (
    BatchTokenOutput,
    Codec,
    FlushCacheReply,
    FlushCacheReq,
    FrontInbound,
    InternalStateReply,
    InternalStateReq,
    Message,
    ProfileOptions,
    ProfileReply,
    ProfileReq,
    SchedulerReady,
    ShutdownReq,
)
from sglang.srt.managers.request_state import ServiceError

logger = logging.getLogger(__name__)

# Other callbacks of the loop get a turn after so many messages.
MAX_MESSAGES_PER_TURN = 64
READY_POLL_MS = 100
LAST_WORDS_MS = 300


class SchedulerClient:
    """Sends to the scheduler and hands its outputs to `on_output`; `on_failure` is called once when the scheduler is lost.

    Both callbacks run in the bound loop. Everything but `fail` belongs to the thread of that loop.
    """

    def __init__(self, scheduler_input_ipc_name: str, tokenizer_ipc_name: str) -> None:
        self._context = zmq.Context()
        self._outbox = self._bind(zmq.PUSH, scheduler_input_ipc_name)
        self._inbox = self._bind(zmq.PULL, tokenizer_ipc_name)
        self._codec = Codec(FrontInbound)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._replies: dict[str, asyncio.Future[Any]] = {}
        self._is_closed = False
        self.failure: str | None = None
        self.on_output: Callable[[BatchTokenOutput], None] = lambda batch: None
        self.on_failure: Callable[[str], None] = lambda reason: None
        self.last_receive_ts = time.monotonic()

    @property
    def is_alive(self) -> bool:
        """The scheduler has not been lost, as far as is known."""
        return self.failure is None and not self._is_closed

    # --- start

    def wait_ready(self, check_alive: Callable[[], None]) -> dict[str, Any]:
        """Block until the scheduler is up and return what it says about itself.

        Args:
            check_alive: called now and then; raises to give up.

        Raises RuntimeError with the scheduler's reason when it could not start.
        """
        while True:
            if self._inbox.poll(READY_POLL_MS):
                message = self._codec.decode(self._inbox.recv())
                if isinstance(message, SchedulerReady):
                    return _ready_info(message)
                continue
            try:
                check_alive()
            except RuntimeError:
                # It may have said why just before it ended.
                if not self._inbox.poll(LAST_WORDS_MS):
                    raise

    # --- messages

    def send(self, message: Message) -> None:
        """Hand a message to the scheduler. Raises ServiceError (500) when there is none any more."""
        if not self.is_alive:
            raise ServiceError(self.failure or "The engine has been shut down.", 500)
        try:
            self._outbox.send(self._codec.encode(message), zmq.NOBLOCK)
        except zmq.Again as error:  # only without a peer: the queue itself has no limit
            self.failure = "The scheduler process is gone."
            raise ServiceError(self.failure, 500) from error

    async def flush_cache(self) -> FlushCacheReply:
        return await self._ask(FlushCacheReq(call_id=uuid.uuid4().hex))

    async def get_internal_state(self) -> dict[str, Any]:
        reply: InternalStateReply = await self._ask(InternalStateReq(call_id=uuid.uuid4().hex))
        return reply.state

    async def profile(self, options: ProfileOptions | None) -> ProfileReply:
        """Start a recording, or end it with None."""
        return await self._ask(ProfileReq(call_id=uuid.uuid4().hex, options=options))

    async def _ask(self, message: FlushCacheReq | InternalStateReq | ProfileReq) -> Any:
        loop = asyncio.get_running_loop()
        self.bind_loop(loop)
        future = self._replies[message.call_id] = loop.create_future()
        try:
            self.send(message)
            return await future
        finally:
            self._replies.pop(message.call_id, None)

    # --- the loop

    def bind_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read the socket from `loop`, the running one. Raises RuntimeError while another running loop waits for answers."""
        if loop is self._loop or self._is_closed:
            return
        if self._loop is not None and self._loop.is_running() and self._replies:
            raise RuntimeError(
                "the engine is in use by another running event loop; use it from one at a time"
            )
        self._unbind()
        self._loop = loop
        loop.add_reader(self._inbox.fileno(), self._read)
        # The descriptor reports changes only; what had arrived before would go unnoticed.
        loop.call_soon(self._read)

    def _unbind(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._inbox.fileno())
        self._loop = None

    def _read(self) -> None:
        """Take what has arrived; must go on until the socket is empty, because its descriptor reports changes only."""
        if self._is_closed:
            return
        for _ in range(MAX_MESSAGES_PER_TURN):
            try:
                data = self._inbox.recv(zmq.NOBLOCK)
            except zmq.Again:
                if self.failure is not None:
                    self._report_failure()
                return
            self._dispatch(data)
        if self._loop is not None:
            self._loop.call_soon(self._read)

    def _dispatch(self, data: bytes) -> None:
        self.last_receive_ts = time.monotonic()
        try:
            message = self._codec.decode(data)
        except msgspec.DecodeError as error:
            self.failure = f"The scheduler sent a message that cannot be read: {error}"
            return
        if isinstance(message, BatchTokenOutput):
            self.on_output(message)
        elif isinstance(message, SchedulerReady):
            self.failure = self.failure or message.error
        else:
            future = self._replies.get(message.call_id)
            if future is not None and not future.done():
                future.set_result(message)

    # --- the end

    def fail(self, reason: str) -> None:
        """The scheduler is lost: every waiting and future call ends with `reason`. May be called from any thread."""
        if not self.is_alive:
            return
        self.failure = reason
        loop = self._loop
        if loop is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(self._read)  # first what it still said, then the failure
            except RuntimeError:  # closed meanwhile; nobody waits there
                return

    def _report_failure(self) -> None:
        reason = self.failure or "The scheduler is gone."
        for future in self._replies.values():
            if not future.done():
                future.set_exception(ServiceError(reason, 500))
        self.on_failure(reason)

    def close(self) -> None:
        """Ask the scheduler to stop and give the sockets back; safe to call twice."""
        if self._is_closed:
            return
        if self.is_alive:
            try:
                self.send(ShutdownReq())
            except ServiceError:
                logger.debug("No scheduler to say goodbye to")
        self._is_closed = True
        self.failure = self.failure or "The engine has been shut down."
        self._unbind()
        self._report_failure()
        # The goodbye gets a moment to leave; the process is ended anyway.
        self._context.destroy(linger=100)

    def _bind(self, kind: int, address: str) -> zmq.Socket:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.bind(address)
        return socket


def _ready_info(message: SchedulerReady) -> dict[str, Any]:
    if message.error is not None:
        raise RuntimeError(f"The scheduler could not start: {message.error}")
    return message.info
