"""The scheduler's end of the sockets to the front."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import zmq

from sglang.srt.managers.io_struct import Codec, SchedulerInbound

if TYPE_CHECKING:
    from sglang.srt.server_args import PortArgs

MAX_MESSAGES_PER_TURN = 256
LINGER_MS = 1000


def send_once(ports: PortArgs, message: Any) -> None:
    """One message to the front from a process that takes no requests: whoever connects to the inbox gets a share of them."""
    context = zmq.Context(1)
    outbox = context.socket(zmq.PUSH)
    outbox.connect(ports.tokenizer_ipc_name)
    outbox.send(Codec(SchedulerInbound).encode(message))
    context.destroy(linger=LINGER_MS)


class SocketMailbox:
    """Requests in, replies out. Not thread-safe."""

    def __init__(self, ports: PortArgs) -> None:
        self._context = zmq.Context(1)
        self._inbox = self._context.socket(zmq.PULL)
        self._inbox.connect(ports.scheduler_input_ipc_name)
        self._outbox = self._context.socket(zmq.PUSH)
        self._outbox.connect(ports.tokenizer_ipc_name)
        self._codec = Codec(SchedulerInbound)

    def receive(self, timeout: float) -> list[Any]:
        """Messages that have arrived, waiting up to `timeout` seconds for the first."""
        if timeout > 0 and not self._inbox.poll(int(timeout * 1000)):
            return []
        messages: list[Any] = []
        while len(messages) < MAX_MESSAGES_PER_TURN:
            try:
                messages.append(self._codec.decode(self._inbox.recv(zmq.NOBLOCK)))
            except zmq.Again:
                break
        return messages

    def send(self, message: Any) -> None:
        self._outbox.send(self._codec.encode(message))

    def close(self) -> None:
        """Deliver what is queued and close."""
        self._context.destroy(linger=LINGER_MS)
