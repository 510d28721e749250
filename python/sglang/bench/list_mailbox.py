"""A scheduler's mailbox in its own process, for measurements."""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.io_struct import Codec, SchedulerInbound


class ListMailbox:
    """Hands over what is put into `inbox`; replies are encoded as for the socket and dropped."""

    def __init__(self) -> None:
        self.inbox: list[Any] = []
        self._codec = Codec(SchedulerInbound)

    def receive(self, timeout: float) -> list[Any]:
        """Everything in the inbox; never waits."""
        taken, self.inbox = self.inbox, []
        return taken

    def send(self, message: Any) -> None:
        self._codec.encode(message)
