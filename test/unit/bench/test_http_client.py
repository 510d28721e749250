"""The HTTP client against a server that sends exactly the bytes a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from sglang.bench.http_client import EventSplitter, HttpClient, HttpStatusError

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def run(script: list[list[bytes]], use: Callable[[HttpClient], Awaitable]):
    """`script[c][i]`: the answer to request i of connection c, which is then closed. Returns (result, requests seen)."""

    async def scene():
        seen: list[list[bytes]] = []

        async def serve(reader, writer):
            mine: list[bytes] = []
            seen.append(mine)
            for answer in script[len(seen) - 1]:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                mine.append(head + await reader.readexactly(length))
                writer.write(answer)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = HttpClient(f"http://127.0.0.1:{port}/root/", {"X-Key": "value"})
        try:
            return await use(client), seen
        finally:
            client.close()
            server.close()

    return asyncio.run(scene())


async def collect(client: HttpClient) -> list[bytes]:
    return [event async for event in client.events("/generate", {"stream": True})]


def test_request_line_headers_and_body():
    result, seen = run([[OK]], lambda client: client.json("POST", "/path", {"a": "ü"}))
    assert result == {}
    head, _, body = seen[0][0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /root/path HTTP/1.1\r\n")
    assert b"\r\nX-Key: value\r\n" in head and b"\r\nContent-Type: application/json\r\n" in head
    assert body == b'{"a": "\\u00fc"}'


def test_connection_is_reused():
    async def use(client):
        for _ in range(3):
            await client.json("GET", "/")

    _, seen = run([[OK, OK, OK]], use)
    assert [len(requests) for requests in seen] == [3]


def test_connection_closed_by_the_server_is_replaced():
    async def use(client):
        await client.json("GET", "/")
        await asyncio.sleep(0.01)
        return await client.json("GET", "/")

    result, seen = run([[OK], [OK]], use)
    assert result == {} and len(seen) == 2


def test_connection_close_is_respected():
    async def use(client):
        await client.json("GET", "/")
        return await client.json("GET", "/")

    closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    _, seen = run([[closing, OK], [OK]], use)
    assert [len(requests) for requests in seen] == [1, 1]


def test_chunks_may_cut_events_anywhere():
    events = b"data: one\n\ndata: two\n\n"
    chunks = b"".join(b"1;x=y\r\n" + events[i : i + 1] + b"\r\n" for i in range(len(events)))
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    result, _ = run([[head + chunks + b"0\r\nTrailer: 1\r\n\r\n"]], collect)
    assert result == [b"one", b"two"]


def test_body_without_length_ends_with_the_connection():
    result, _ = run([[b"HTTP/1.1 200 OK\r\n\r\ndata: x\n\n"]], collect)
    assert result == [b"x"]


def test_cut_off_body_is_an_error():
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with pytest.raises(asyncio.IncompleteReadError):
        run([[head + b"ff\r\ndata: x\n\n"]], collect)


def test_status_error_holds_status_and_body():
    answer = b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nfull"
    with pytest.raises(HttpStatusError, match="503: full") as caught:
        run([[answer]], lambda client: client.request("GET", "/"))
    assert caught.value.status == 503


@pytest.mark.parametrize("url", ["127.0.0.1:30000", "ftp://host", "http://"])
def test_bad_address_is_refused(url):
    with pytest.raises(ValueError, match="base URL"):
        HttpClient(url)


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data:a\n\n", [b"a"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b": comment\n\nevent: x\ndata: a\n\n", [b"a"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data: unfinished\n", []),
    ],
)
def test_event_splitter(stream, events):
    splitter = EventSplitter()
    assert [event for byte in stream for event in splitter.feed(bytes([byte]))] == events
    assert EventSplitter().feed(stream) == events
