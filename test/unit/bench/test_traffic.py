"""Arrival times and the limit on concurrency."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from sglang.bench.traffic import arrival_times, replay


def test_infinite_rate_sends_at_once():
    assert arrival_times(3, float("inf"), 0) == [0.0, 0.0, 0.0]


def test_poisson_arrivals():
    times = np.array(arrival_times(20000, 50.0, 7))
    gaps = np.diff(times)
    assert times[0] == 0.0 and (gaps > 0).all()
    # Exponential gaps: mean and standard deviation are both 1 / rate.
    assert gaps.mean() == pytest.approx(0.02, rel=0.05)
    assert gaps.std() == pytest.approx(0.02, rel=0.05)
    assert times.tolist() == arrival_times(20000, 50.0, 7) != arrival_times(20000, 50.0, 8)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_rate_must_be_positive(rate):
    with pytest.raises(ValueError, match="request rate"):
        arrival_times(1, rate, 0)


@pytest.mark.parametrize(("limit", "peak"), [(None, 6), (2, 2)])
def test_concurrency_limit_and_order(limit, peak):
    running = most = done = 0

    async def send(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001 * (6 - number))
        running -= 1
        return number * 10

    def on_done() -> None:
        nonlocal done
        done += 1

    results = asyncio.run(replay(range(6), [0.0] * 6, send, limit, on_done))
    assert results == [0, 10, 20, 30, 40, 50] and most == peak and done == 6


def test_requests_wait_for_their_time():
    async def scene():
        loop = asyncio.get_running_loop()
        started = loop.time()

        async def send(_: int) -> float:
            return loop.time() - started

        return await replay([0, 1], [0.0, 0.05], send)

    first, second = asyncio.run(scene())
    assert second >= 0.05 > first


def test_failure_stops_the_others():
    cancelled = []

    async def send(number: int) -> None:
        if number == 0:
            raise RuntimeError("boom")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise

    async def scene():
        with pytest.raises(RuntimeError, match="boom"):
            await replay([0, 1], [0.0, 0.0], send)
        await asyncio.sleep(0)

    asyncio.run(scene())
    assert cancelled == [1]
