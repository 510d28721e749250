"""How ranks find each other: the store that torch.distributed needs, and the network interface it uses."""

from __future__ import annotations

import errno
import logging
import os
import socket
from datetime import timedelta
from urllib.parse import urlsplit

import torch.distributed as dist

logger = logging.getLogger(__name__)

# Machines are often started one after the other, by hand.
DEFAULT_JOIN_TIMEOUT = timedelta(minutes=10)
_INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def open_tcp_store(
    url: str, world_size: int, rank: int, timeout: timedelta | None
) -> dist.TCPStore:
    """The store at `tcp://host:port`. Rank 0 serves it on that address only, where torch alone would listen on every interface.

    Raises RuntimeError (torch's) when rank 0 does not answer within `timeout`, OSError when the port is taken.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None, f"{url} has no host or port"
    listen_fd = None
    if rank == 0:
        listener = bind(parts.hostname, parts.port)
        listener.listen()
        listen_fd = listener.detach()  # the store closes it
    return dist.TCPStore(
        parts.hostname,
        parts.port,
        world_size,
        is_master=rank == 0,
        timeout=timeout or DEFAULT_JOIN_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=listen_fd,
    )


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket bound to `host`; to every interface when `host` is a name of another address, as behind a forwarder."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        if not _is_foreign_address(error):
            listener.close()
            raise OSError(f"cannot listen on {host} port {port}: {error.strerror}") from error
        logger.warning("%s is no address of this machine; rank 0 listens on every interface", host)
        listener.bind(("", port))
    return listener


def stay_on_loopback() -> None:
    """Let the collectives of this process use the loopback interface, unless the environment names another."""
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    for variable in _INTERFACE_VARIABLES:
        if names:
            os.environ.setdefault(variable, names[0])


def avoid_multicast() -> None:
    """No multicast over NVLink, unless the environment asks for it: a decode step's sums are too small for it, and it takes resources
    that all programs of a machine share."""
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")


def _is_foreign_address(error: OSError) -> bool:
    return error.errno == errno.EADDRNOTAVAIL
