"""Bytes from rank 0 to every other rank, and word of who is gone.

One TCP connection per follower. Rank 0 listens only until all followers have connected and shown the secret of the run. A frame is a
little-endian uint32 length and so many bytes; length 0 is the end of the server. The other way a follower says one thing at most: why
it fails. Waiting on either side costs no CPU time. A peer that dies closes its end, which the watchers notice at once.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import select
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

from sglang.srt.distributed.rendezvous import bind

logger = logging.getLogger(__name__)

SECRET_BYTES = 32
HANDSHAKE_SECONDS = 5.0
JOIN_SECONDS = 600.0
MAX_LAST_WORDS = 4096
# Time for a follower to read the goodbye before a closed connection counts as a loss.
GOODBYE_SECONDS = 2.0

_LENGTH = struct.Struct("<I")
_HELLO = struct.Struct(f"<{SECRET_BYTES}sI")


class LeaderChannel:
    """Rank 0's end. `send` belongs to one thread."""

    def __init__(self, host: str) -> None:
        self._listener = bind(host, 0)
        self._listener.listen()
        self.port: int = self._listener.getsockname()[1]
        self.secret = secrets.token_bytes(SECRET_BYTES)
        self._followers: dict[int, socket.socket] = {}
        self._is_closed = False

    def accept(self, num_followers: int, timeout: float | None = None) -> None:
        """Wait for the followers, then stop listening. Raises TimeoutError when they do not come."""
        deadline = time.monotonic() + (timeout or JOIN_SECONDS)
        with self._listener:
            while len(self._followers) < num_followers:
                self._listener.settimeout(max(deadline - time.monotonic(), 0.001))
                try:
                    connection, _ = self._listener.accept()
                except TimeoutError as error:
                    missing = num_followers - len(self._followers)
                    raise TimeoutError(f"{missing} ranks did not connect in time") from error
                self._greet(connection)

    def _greet(self, connection: socket.socket) -> None:
        """Take the connection in when it shows the secret; strangers are dropped."""
        connection.settimeout(HANDSHAKE_SECONDS)
        try:
            secret, rank = _HELLO.unpack(_read_exactly(connection, _HELLO.size))
        except OSError:
            secret, rank = b"", -1
        if not hmac.compare_digest(secret, self.secret):
            logger.warning("Dropped a connection that does not belong to this server")
            connection.close()
            return
        _prepare(connection)
        self._followers[rank] = connection

    def send(self, payload: bytes) -> None:
        """To every follower; `payload` is not empty. Raises OSError when one is gone."""
        frame = _LENGTH.pack(len(payload)) + payload
        for connection in self._followers.values():
            connection.sendall(frame)

    def watch(self, on_loss: Callable[[str], None]) -> None:
        """Call `on_loss(reason)` in a thread of its own when a follower ends before `close`."""

        def wait() -> None:
            with selectors.DefaultSelector() as selector:
                for rank, connection in self._followers.items():
                    selector.register(connection, selectors.EVENT_READ, rank)
                key, _ = selector.select()[0]
            words = _read_last_words(self._followers[key.data])
            if not self._is_closed:
                on_loss(f"Rank {key.data} is gone: {words or 'its process or machine ended'}")

        threading.Thread(target=wait, name="follower-watch", daemon=True).start()

    def close(self) -> None:
        """Tell the followers that the server ends; safe to call twice."""
        if self._is_closed:
            return
        self._is_closed = True
        for rank, connection in self._followers.items():
            try:
                connection.sendall(_LENGTH.pack(0))
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                logger.debug("Rank %d was gone before the goodbye", rank)


class FollowerChannel:
    """The end of another rank. Raises ConnectionError when rank 0 cannot be reached."""

    def __init__(self, host: str, port: int, secret: bytes, rank: int) -> None:
        try:
            self._connection = socket.create_connection((host, port), HANDSHAKE_SECONDS)
        except OSError as error:
            raise ConnectionError(f"rank 0 cannot be reached at {host}:{port}: {error}") from error
        self._connection.sendall(_HELLO.pack(secret, rank))
        _prepare(self._connection)

    def receive(self) -> bytes | None:
        """The next frame; None when the server ends. Blocks. Raises ConnectionError when rank 0 is gone."""
        (length,) = _LENGTH.unpack(_read_exactly(self._connection, _LENGTH.size))
        return _read_exactly(self._connection, length) if length else None

    def watch(self, on_loss: Callable[[str], None]) -> None:
        """Call `on_loss(reason)` in a thread of its own when rank 0 is gone and nobody reacts, as in a collective that hangs."""

        def wait() -> None:
            poll = select.poll()
            poll.register(self._connection, _HANGUP)
            poll.poll()
            time.sleep(GOODBYE_SECONDS)
            on_loss("Rank 0 is gone")

        threading.Thread(target=wait, name="leader-watch", daemon=True).start()

    def say_last_words(self, text: str) -> None:
        """Tell rank 0 why this rank fails, if it still listens."""
        try:
            self._connection.sendall(text.encode()[:MAX_LAST_WORDS])
        except OSError:
            logger.debug("Rank 0 is gone too")


# Only Linux tells a peer that has closed its side from one that is silent.
_HANGUP = select.POLLHUP | select.POLLERR
if sys.platform == "linux":
    _HANGUP |= select.POLLRDHUP


def _prepare(connection: socket.socket) -> None:
    """No delay for small frames, and probes that find out when a machine has vanished without a word."""
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _read_exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        count = connection.recv_into(view[done:])
        if count == 0:
            raise ConnectionError("the other rank closed the connection")
        done += count
    return bytes(data)


def _read_last_words(connection: socket.socket) -> str:
    try:
        return connection.recv(MAX_LAST_WORDS).decode(errors="replace")
    except OSError:
        return ""
