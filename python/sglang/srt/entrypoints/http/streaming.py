"""Server-sent events, and work that ends when the client goes away.

Nothing here aborts a request by name: when a client disconnects the generator of its answer is closed, and the
tokenizer manager ends exactly the samples of that generator.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

DONE_EVENT = b"data: [DONE]\n\n"
_encoder = msgspec.json.Encoder()


class ClientGoneError(Exception):
    """The client closed the connection; nobody reads the answer."""


class JSONResponse(Response):
    """JSON of plain values and msgspec structs; NaN and infinities become null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return _encoder.encode(content)


class EventStream(Response):
    """Sends encoded events until they end or the client disconnects, then closes `events`."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        self._events = events
        self.status_code = 200
        self.background = None
        # Proxies must pass every event on at once.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        with contextlib.suppress(ClientGoneError, OSError):
            await until_disconnect(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        async with contextlib.aclosing(self._events) as events:  # type: ignore[type-var]
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def event(value: Any) -> bytes:
    """One server-sent event with a JSON value."""
    return b"data: " + _encoder.encode(value) + b"\n\n"


async def single(request: Request, items: AsyncIterator[T]) -> T:
    """The first item of a generator, which is then closed. Raises ClientGoneError."""

    async def take() -> T:
        async with contextlib.aclosing(items) as closing:  # type: ignore[type-var]
            return await anext(closing)

    return await until_disconnect(request.receive, take())


async def with_first(
    request: Request, items: AsyncIterator[T], check: Callable[[T], None] = lambda item: None
) -> AsyncIterator[T]:
    """`items` after its first item is there, so that an error before it can still choose the status code.

    Raises what the first step or `check` of its item raises, and ClientGoneError.
    """

    async def take() -> T:
        item = await anext(items)
        check(item)
        return item

    return _chain(await until_disconnect(request.receive, take()), items)


async def _chain(first: T, rest: AsyncIterator[T]) -> AsyncIterator[T]:
    async with contextlib.aclosing(rest) as closing:  # type: ignore[type-var]
        yield first
        async for item in closing:
            yield item


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; when the client goes away first, `work` is cancelled and ClientGoneError raised."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        for unfinished in (task, watcher):
            await _cancel(unfinished)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(task: asyncio.Future[Any]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
