"""When requests are sent: Poisson arrivals, and a limit on how many run at once."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
R = TypeVar("R")

PROGRESS_INTERVAL = 0.5  # seconds


def arrival_times(count: int, rate: float, seed: int) -> list[float]:
    """Seconds after the start; gaps are exponential with mean `1 / rate`, all zero for an infinite rate.

    Raises ValueError for a rate that is not positive.
    """
    if not rate > 0:
        raise ValueError(f"request rate {rate} must be positive (inf sends everything at once)")
    if math.isinf(rate):
        return [0.0] * count
    gaps = np.random.default_rng(seed).exponential(1.0 / rate, count)
    return (np.cumsum(gaps) - gaps[0]).tolist() if count else []


async def replay(
    requests: Sequence[T],
    arrivals: Sequence[float],
    send: Callable[[T], Awaitable[R]],
    max_concurrency: int | None = None,
    on_done: Callable[[], None] = lambda: None,
) -> list[R]:
    """Send each request at its time, later when `max_concurrency` are running; results in order of the requests."""
    gate = asyncio.Semaphore(max_concurrency) if max_concurrency else contextlib.nullcontext()

    async def one(request: T) -> R:
        async with gate:
            result = await send(request)
        on_done()
        return result

    started = time.perf_counter()
    tasks = []
    for request, due in zip(requests, arrivals, strict=True):
        # The clock is absolute: late wake-ups do not lower the rate.
        wait = due - (time.perf_counter() - started)
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(request)))
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


class Progress:
    """A counter on one line of the terminal; silent when stderr is none."""

    def __init__(self, total: int, *, enabled: bool) -> None:
        self._total = total
        self._done = 0
        self._is_shown = enabled and sys.stderr.isatty()
        self._shown_at = 0.0

    def advance(self) -> None:
        self._done += 1
        now = time.perf_counter()
        is_last = self._done == self._total
        if self._is_shown and (is_last or now - self._shown_at > PROGRESS_INTERVAL):
            self._shown_at = now
            end = "\n" if is_last else ""
            print(f"\r{self._done}/{self._total} requests", end=end, file=sys.stderr, flush=True)
