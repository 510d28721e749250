"""What all media of one request may take together, files and decoded ones alike, and whether anybody still waits for them.

Each medium has limits of its own, yet hundreds of media that are all allowed are more than a machine has: a picture of a few hundred KiB
may be 200 MiB of pixels.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Iterator

from sglang.srt.utils.errors import RequestError

_MIB = 1024 * 1024
MAX_REQUEST_BYTES = 2048 * _MIB


class RequestBudget:
    """Counts bytes; threads may share it."""

    def __init__(self, max_bytes: int | None = None) -> None:
        self._max_bytes = MAX_REQUEST_BYTES if max_bytes is None else max_bytes
        self._left = self._max_bytes
        self._is_over = False
        self._lock = threading.Lock()

    def take(self, num_bytes: int = 0) -> None:
        """Raises RequestError when this is more than is left, and when the request is over; before work, `take()` only asks."""
        with self._lock:
            self._left -= num_bytes
            if self._is_over:
                raise RequestError("the request was given up before its media were ready", 408)
            if self._left < 0:
                raise RequestError(
                    f"the media of the request take more than the {self._max_bytes // _MIB} MiB that are allowed together, "
                    "as files or decoded; send fewer or smaller ones",
                    413,
                )

    def end(self) -> None:
        """Nobody waits for the media any more: what has not begun is not begun."""
        with self._lock:
            self._is_over = True


_current: contextvars.ContextVar[RequestBudget] = contextvars.ContextVar("media_budget")


def budget_of_request() -> RequestBudget:
    """That of the request which this thread prepares; a new one outside of any."""
    return _current.get(None) or RequestBudget()


@contextlib.contextmanager
def using_budget(budget: RequestBudget) -> Iterator[None]:
    """Make it that of the request which this thread prepares."""
    token = _current.set(budget)
    try:
        yield
    finally:
        _current.reset(token)
