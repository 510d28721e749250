"""A lean HTTP/1.1 client on asyncio streams: keep-alive, chunked bodies, server-sent events.

It measures servers of very small models, so what it costs per token must be little; general clients cost several times as much.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit

_DATA = b"data:"


class HttpStatusError(Exception):
    """The server answered with a status other than 200."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"HTTP {status}: {body[:500].decode('utf-8', 'replace')}")
        self.status = status


class HttpClient:
    """Requests to one server. Connections are kept and reused; as many are open as requests run at once."""

    def __init__(self, base_url: str, headers: Mapping[str, str] | None = None) -> None:
        """Raises ValueError for an address that is not `http://...` or `https://...`."""
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"base URL {base_url!r} must look like http://HOST:PORT or https://HOST:PORT"
            )
        self._host = parts.hostname
        self._is_tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._is_tls else 80)
        self._root = parts.path.rstrip("/")
        fields = {"Host": parts.netloc.rpartition("@")[2], **(headers or {})}
        self._fields = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._idle: list[_Connection] = []

    async def request(self, method: str, path: str, value: Any = None) -> bytes:
        """The body of the answer. Raises HttpStatusError, OSError or asyncio.IncompleteReadError."""
        async with self._exchange(method, path, value) as answer:
            return b"".join([piece async for piece in answer.pieces()])

    async def json(self, method: str, path: str, value: Any = None) -> Any:
        return json.loads(await self.request(method, path, value))

    async def events(self, path: str, value: Any) -> AsyncIterator[bytes]:
        """POST and yield the data of each server-sent event; raises like `request`."""
        splitter = EventSplitter()
        async with self._exchange("POST", path, value) as answer:
            async for piece in answer.pieces():
                for event in splitter.feed(piece):
                    yield event

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    @contextlib.asynccontextmanager
    async def _exchange(self, method: str, path: str, value: Any) -> AsyncIterator[_Answer]:
        body = b"" if value is None else json.dumps(value).encode()
        kind = "" if value is None else "Content-Type: application/json\r\n"
        head = f"{method} {self._root}{path} HTTP/1.1\r\n{self._fields}{kind}Content-Length: {len(body)}\r\n\r\n"
        connection, answer = await self._start(head.encode("latin-1") + body)
        try:
            if answer.status != 200:
                pieces = [piece async for piece in answer.pieces()]
                raise HttpStatusError(answer.status, b"".join(pieces))
            yield answer
        finally:
            if answer.is_complete and answer.keeps_alive:
                self._idle.append(connection)
            else:
                connection.close()

    async def _start(self, message: bytes) -> tuple[_Connection, _Answer]:
        """Send, and read the head of the answer. A kept connection that the server has closed meanwhile is replaced."""
        while self._idle:
            connection = self._idle.pop()
            try:
                return connection, await connection.send(message)
            except (ConnectionError, asyncio.IncompleteReadError):
                connection.close()
        reader, writer = await asyncio.open_connection(
            self._host, self._port, ssl=True if self._is_tls else None
        )
        connection = _Connection(reader, writer)
        try:
            return connection, await connection.send(message)
        except BaseException:
            connection.close()
            raise


class EventSplitter:
    """Cuts a byte stream into the data of server-sent events, wherever the pieces break."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """Data of the events that are complete now."""
        blocks = (self._rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        self._rest = blocks.pop()
        found = []
        for block in blocks:
            lines = [line[len(_DATA) :] for line in block.split(b"\n") if line.startswith(_DATA)]
            if lines:
                found.append(b"\n".join(line.removeprefix(b" ") for line in lines))
        return found


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, message: bytes) -> _Answer:
        self._writer.write(message)
        await self._writer.drain()
        head = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        fields = {name.strip().lower(): value.strip() for name, _, value in pairs}
        return _Answer(self._reader, status=int(first.split(" ", 2)[1]), fields=fields)

    def close(self) -> None:
        self._writer.close()


@dataclasses.dataclass
class _Answer:
    """One response; `pieces` may be read once."""

    reader: asyncio.StreamReader
    status: int
    fields: dict[str, str]
    is_complete: bool = False

    @property
    def keeps_alive(self) -> bool:
        is_framed = "content-length" in self.fields or "transfer-encoding" in self.fields
        return is_framed and self.fields.get("connection", "").lower() != "close"

    async def pieces(self) -> AsyncIterator[bytes]:
        if self.fields.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16):
                yield (await self.reader.readexactly(size + 2))[:-2]
            while await self.reader.readuntil(b"\r\n") != b"\r\n":
                pass  # trailers
        elif "content-length" in self.fields:
            yield await self.reader.readexactly(int(self.fields["content-length"]))
        else:
            while piece := await self.reader.read(65536):
                yield piece
        self.is_complete = True
