"""What the time of a start went to: one line in the log, and `start_seconds` among the facts of the scheduler."""

from __future__ import annotations

import time

_process_began: float | None = None


def note_process_start(moment: float) -> None:
    """Where the clocks of this process begin: when its parent started it, by `time.monotonic`, which processes share."""
    global _process_began
    _process_began = moment


class StartClock:
    """Seconds by phase, in the order of the phases. Begins with the process where that is known, else now."""

    def __init__(self, began: float | None = None) -> None:
        self.seconds: dict[str, float] = {}
        if began is None:
            began = time.monotonic() if _process_began is None else _process_began
        self.began = self._last = began

    @classmethod
    def from_now(cls) -> StartClock:
        return cls(time.monotonic())

    def lap(self, phase: str) -> None:
        """What has passed since the last lap was `phase`."""
        now = time.monotonic()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now

    def take_over(self, other: StartClock) -> None:
        """The phases of `other`, which began after this one's last lap. The time in between is the first phase's."""
        gap = other.began - self._last
        for phase, spent in other.seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + spent + gap
            gap = 0.0
        self._last = other._last

    def __str__(self) -> str:
        phases = ", ".join(f"{phase} {spent:.1f} s" for phase, spent in self.seconds.items())
        return f"{sum(self.seconds.values()):.1f} s ({phases})"
