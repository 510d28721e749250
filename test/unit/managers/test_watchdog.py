"""Hanging is noticed, being suspended or waiting is not taken for it."""

from __future__ import annotations

import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from sglang.srt.managers import watchdog
from sglang.srt.managers.watchdog import (
    MIN_TIMEOUT,
    WATCHDOG_EXIT_CODE,
    Stillness,
    effective_timeout,
    look_interval,
)


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_stillness_adds_up_until_the_value_changes(clock):
    still = Stillness(interval=1.0)
    seconds = []
    for value in (1, 1, 1, 2, 2, None, None, 2):
        clock.seconds += 1.0
        seconds.append(still.look(value))
    assert seconds == [0, 1, 2, 0, 1, 0, 0, 0]


def test_suspended_looker_does_not_count_the_pause(clock):
    still = Stillness(interval=1.0)
    still.look(1)
    clock.seconds += 10_000.0  # the whole machine slept
    assert still.look(1) == 2.0


@pytest.mark.parametrize(
    ("given", "effective"), [(0, None), (0.01, MIN_TIMEOUT), (2.5, 2.5), (300.0, 300.0)]
)
def test_what_the_flag_means(given, effective):
    assert effective_timeout(given) == effective
    if effective is not None:
        assert 0 < look_interval(effective) <= effective / 4


SCRIPT = """
import time
from sglang.srt.managers import watchdog
watchdog.MIN_TIMEOUT = 0.2
dog = watchdog.Watchdog(0.2)
for _ in range(6):
    dog.begin_turn()
    time.sleep(0.1)
dog.rest()
time.sleep(0.8)
print("rested", flush=True)
def hang():
    dog.begin_turn()
    time.sleep({seconds})
hang()
print("came back", flush=True)
"""


def run(script: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60
    )


def test_turn_that_hangs_ends_the_process_with_its_stack():
    done = run(SCRIPT.format(seconds=50))
    assert done.returncode == WATCHDOG_EXIT_CODE
    assert done.stdout.split() == ["rested"]
    assert "no progress for 0.2 s" in done.stderr and "in hang" in done.stderr


def test_without_a_limit_nothing_ends():
    done = run(SCRIPT.format(seconds=0.5).replace("Watchdog(0.2)", "Watchdog(0)"))
    assert done.returncode == 0 and done.stdout.split() == ["rested", "came", "back"]


def test_watched_process_beats_and_prints_stacks_on_the_signal():
    script = """
import ctypes, os, signal, time
from sglang.srt.managers import watchdog
watchdog._PULSE_SECONDS = 0.01
pulse = ctypes.c_uint64(0)
watchdog.be_watched(pulse)
while pulse.value < 3:
    time.sleep(0.01)
def here():
    os.kill(os.getpid(), watchdog.STACKS_SIGNAL)
here()
print("alive")
"""
    done = run(script)
    assert done.returncode == 0 and done.stdout.split() == ["alive"]
    assert "in here" in done.stderr
    assert watchdog.STACKS_SIGNAL == signal.SIGUSR1  # documented for operators
