"""Who notices that a process hangs: a thread of its own looks at the turns of its loop, and the parent at a pulse that it keeps.

The thread finds a step that does not end and prints the stacks. The parent finds what keeps the thread itself from running: a stopped
process, or a native call that never gives the interpreter back.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import threading
import time
from typing import Protocol

logger = logging.getLogger(__name__)

WATCHDOG_EXIT_CODE = 3
# A process that is watched prints the stacks of all its threads on this signal.
STACKS_SIGNAL = signal.SIGUSR1
# An idle loop turns over about once a second.
MIN_TIMEOUT = 2.0
_MAX_INTERVAL = 5.0
_PULSE_SECONDS = 0.5


class Counter(Protocol):
    """An integer in memory that two processes share."""

    value: int


class Stillness:
    """How long a value has not changed, over looks about `interval` seconds apart.

    A late look counts like one in time: when the machine or the whole process group was suspended, nobody has hung.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._value: int | None = None
        self._seconds = 0.0
        self._last_look = time.monotonic()

    def look(self, value: int | None) -> float:
        """Seconds without a change; None never counts as still."""
        now = time.monotonic()
        elapsed, self._last_look = now - self._last_look, now
        if value is None or value != self._value:
            self._value, self._seconds = value, 0.0
        else:
            self._seconds += min(elapsed, 2 * self._interval)
        return self._seconds


class Watchdog:
    """Ends the process with a stack dump when one turn of its loop takes longer than `timeout` seconds; 0: never."""

    def __init__(self, timeout: float) -> None:
        self._timeout = effective_timeout(timeout)
        self._turn = 0
        self._is_resting = True
        if self._timeout is not None:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def begin_turn(self) -> None:
        self._turn += 1
        self._is_resting = False

    def rest(self) -> None:
        """Waiting without a limit is not hanging."""
        self._is_resting = True

    def _watch(self) -> None:
        assert self._timeout is not None, "there is nothing to watch for"
        interval = look_interval(self._timeout)
        stillness = Stillness(interval)
        while True:
            time.sleep(interval)
            if stillness.look(None if self._is_resting else self._turn) >= self._timeout:
                logger.error(
                    "This process made no progress for %g s (--watchdog-timeout); the server ends. The stacks of its "
                    "threads follow.",
                    self._timeout,
                )
                faulthandler.dump_traceback(all_threads=True)
                os._exit(WATCHDOG_EXIT_CODE)


def effective_timeout(timeout: float) -> float | None:
    """What `--watchdog-timeout` means: None for 0, and no less than a loop needs to show that it lives."""
    return max(timeout, MIN_TIMEOUT) if timeout > 0 else None


def look_interval(timeout: float) -> float:
    """Seconds between two looks, for a limit of `timeout`."""
    return min(timeout / 4, _MAX_INTERVAL)


def be_watched(pulse: Counter) -> None:
    """Count up in `pulse` for as long as this process can run Python, and print stacks on `STACKS_SIGNAL`."""
    faulthandler.register(STACKS_SIGNAL, all_threads=True, chain=False)

    def beat() -> None:
        while True:
            pulse.value += 1
            time.sleep(_PULSE_SECONDS)

    threading.Thread(target=beat, name="pulse", daemon=True).start()
