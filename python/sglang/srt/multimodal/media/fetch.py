"""Downloads a medium: public hosts only, one deadline and one size for the whole transfer, every redirect checked again.

The host is resolved once per hop and the connection goes to the address that was checked, so that a name cannot change its meaning
in between. One parser reads the URL, and what it does not understand is refused.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from urllib.parse import SplitResult, urljoin, urlsplit

from sglang.srt.multimodal.media.limits import MediaLimits
from sglang.srt.utils.errors import RequestError

logger = logging.getLogger(__name__)

_MAX_REDIRECTS = 3
_MAX_URL_CHARS = 8192
_CHUNK = 64 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = {"http": 80, "https": 443}
# Addresses that carry an IPv4 address inside, where the inner one decides.
_WRAPPED = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "2002::/16", "2001::/32")))


def fetch(url: str, kind: str, limits: MediaLimits, private_hosts: tuple[str, ...] = ()) -> bytes:
    """The content behind an http(s) URL.

    Args:
        kind: "image", "video" or "audio", for messages.
        private_hosts: hosts that may have an address which is not public.

    Raises RequestError with a sentence for whatever goes wrong. Blocks; run it in a thread.
    """
    deadline = time.monotonic() + limits.fetch_seconds
    for _ in range(_MAX_REDIRECTS + 1):
        parts = _parse(url, kind)
        host = parts.hostname or ""
        address = _resolve(host, _port(parts), kind, private_hosts)
        try:
            content, location = _request(parts, address, kind, limits, deadline)
        except RequestError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            logger.info("Fetching a %s from %r failed: %r", kind, host, error)
            raise _failure(host, kind, limits, deadline) from error
        if location is None:
            return content
        url = urljoin(url, location)
    raise RequestError(f"the {kind} URL was redirected more than {_MAX_REDIRECTS} times")


def _failure(host: str, kind: str, limits: MediaLimits, deadline: float) -> RequestError:
    if time.monotonic() >= deadline:
        return RequestError(
            f"the host {host!r} did not deliver the {kind} within {limits.fetch_seconds:g} seconds"
        )
    return RequestError(f"the {kind} could not be fetched from the host {host!r}")


def _parse(url: str, kind: str) -> SplitResult:
    """Raises RequestError for anything that two parsers could read differently."""
    is_plain = url.isascii() and all(" " < char != "\\" and char != "\x7f" for char in url)
    if not is_plain or len(url) > _MAX_URL_CHARS:
        raise RequestError(
            f"the {kind} URL has characters that must be percent-encoded, or is too long"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise RequestError(f"the {kind} URL is malformed") from error
    if parts.scheme not in _PORTS:
        raise RequestError(f"a {kind} URL must begin with http:// or https://, or data:")
    if not parts.hostname or parts.username is not None or parts.password is not None or port == 0:
        raise RequestError(f"a {kind} URL needs a host, and no user name or password")
    return parts


def _port(parts: SplitResult) -> int:
    return parts.port or _PORTS[parts.scheme]


def _resolve(host: str, port: int, kind: str, private_hosts: tuple[str, ...]) -> str:
    """An address of the host, all of whose addresses are public (or which is listed)."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise RequestError(f"the host {host!r} of the {kind} URL is not known") from error
    addresses = [str(entry[4][0]) for entry in found]
    if host not in private_hosts and not all(map(is_public_address, addresses)):
        raise RequestError(
            f"the host {host!r} of the {kind} URL is not public; the server fetches media from public hosts only"
        )
    return addresses[0]


def is_public_address(text: str) -> bool:
    """Whether an IP address may be fetched from: globally routable, and so is an IPv4 address inside it."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif address.is_site_local or any(address in network for network in _WRAPPED):
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


class _PinnedConnection(http.client.HTTPConnection):
    """Connects to a given address, whatever its host name resolves to by now."""

    def __init__(self, parts: SplitResult, address: str, timeout: float) -> None:
        super().__init__(parts.hostname or "", _port(parts), timeout=timeout)
        self._address = address
        self._is_secure = parts.scheme == "https"

    def connect(self) -> None:
        plain = socket.create_connection((self._address, self.port), self.timeout)
        self.sock = plain
        if self._is_secure:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(plain, server_hostname=self.host)


def _request(
    parts: SplitResult, address: str, kind: str, limits: MediaLimits, deadline: float
) -> tuple[bytes, str | None]:
    """(content, None), or (nothing, where the answer points to)."""
    remaining = max(deadline - time.monotonic(), 0.001)
    connection = _PinnedConnection(parts, address, remaining)
    with contextlib.closing(connection), _hang_up_after(connection, remaining):
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"Accept-Encoding": "identity", "User-Agent": "sglang", "Connection": "close"}
        connection.request("GET", target, headers=headers)
        answer = connection.getresponse()
        if answer.status in _REDIRECTS and answer.getheader("Location"):
            return b"", answer.getheader("Location")
        if answer.status != 200:
            raise RequestError(f"the {kind} URL was answered with status {answer.status}")
        return _read(answer, kind, limits, deadline), None


def _read(
    answer: http.client.HTTPResponse, kind: str, limits: MediaLimits, deadline: float
) -> bytes:
    limits.check_bytes(answer.length or 0, kind)
    pieces, size = [], 0
    while piece := answer.read1(_CHUNK):
        size += len(piece)
        limits.check_bytes(size, kind)
        pieces.append(piece)
        if time.monotonic() >= deadline:
            break
    if time.monotonic() >= deadline:  # also when hanging up ended the answer, or its headers
        raise TimeoutError
    if answer.length:
        raise http.client.IncompleteRead(b"")
    return b"".join(pieces)


@contextlib.contextmanager
def _hang_up_after(connection: http.client.HTTPConnection, seconds: float) -> Iterator[None]:
    """Ends the connection at the deadline, also for a host that sends a byte now and then."""

    def hang_up() -> None:
        sock = connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
