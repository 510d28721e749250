"""Starts a server: the port first, then the engine, then the web application.

This module is light. The web framework is imported while the scheduler process loads the model.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sglang.srt.entrypoints.follower_node import serve_follower_node
from sglang.srt.entrypoints.launch import launch_front
from sglang.srt.environ import warn_of_variables
from sglang.srt.utils.log_setup import configure_logging

if TYPE_CHECKING:
    from sglang.srt.entrypoints.http.runner import HttpServer
    from sglang.srt.entrypoints.launch import Front
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)

_ALL_INTERFACES = ("0.0.0.0", "::", "")
_POLL_SECONDS = 0.005


def launch_server(
    server_args: ServerArgs,
    launch_callback: Callable[[], None] | None = None,
    *,
    front_factory: Callable[..., Front] = launch_front,
) -> None:
    """Serve until told to stop; blocks. A machine other than the first only runs its ranks.

    Args:
        launch_callback: called once, when the server is ready.
        front_factory: starts the engine; takes what `launch_front` takes.

    Raises:
        ConfigError: flags, model files or the chat template cannot work.
        SystemExit: with 1 when the port is taken, the engine cannot start, or the scheduler process died.
            A server that is stopped by SIGTERM or SIGINT returns, so that its process ends with 0.
    """
    configure_logging(server_args.log_level)
    warn_of_variables()
    if server_args.node_rank > 0:
        with _exit_on_signals():
            serve_follower_node(server_args)
        return
    _warn_when_open(server_args)
    watch = _DeathWatch()
    with _exit_on_signals(), _listener(server_args.host, server_args.port) as listener:
        try:
            with _import_in_background():
                front = front_factory(server_args, on_scheduler_death=watch.report)
        except RuntimeError as error:
            logger.error("The server cannot start: %s", error)
            sys.exit(1)
        with contextlib.closing(front):
            failure = _serve(front, server_args, listener, watch, launch_callback)
    if failure is not None:
        logger.error("The server ends: %s", failure)
        sys.exit(1)


def _serve(
    front: Front,
    server_args: ServerArgs,
    listener: socket.socket,
    watch: _DeathWatch,
    launch_callback: Callable[[], None] | None,
) -> str | None:
    """Run the web server; returns why it failed, None when it was asked to stop."""
    # Heavy: the web framework.
    from sglang.srt.entrypoints.http.runner import HttpServer
    from sglang.srt.entrypoints.http.state import ServerState

    try:
        state = ServerState.build(front.tokenizer_manager, server_args)
        server = HttpServer(state, launch_callback)
        watch.attach(server)
        server.run(sockets=[listener])
    except OSError as error:  # somebody else took the port while the model was loading
        return str(error)
    return server.failure


class _DeathWatch:
    """Hands the death of the scheduler to the server, whichever of the two is there first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._server: HttpServer | None = None

    def report(self, reason: str) -> None:
        with self._lock:
            self._reason = reason
            if self._server is not None:
                self._server.fail(reason)

    def attach(self, server: HttpServer) -> None:
        with self._lock:
            self._server = server
            if self._reason is not None:
                server.fail(self._reason)


@contextlib.contextmanager
def _listener(host: str, port: int) -> Iterator[socket.socket]:
    """A bound socket, taken before the model is loaded so that a taken port costs no time. It does not listen yet."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        logger.error("Cannot use --host %s --port %s: %s", host, port, error)
        sys.exit(1)
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            logger.error(
                "Cannot listen on %s port %s: %s. Stop the program that uses it or choose another --port.",
                host,
                port,
                error.strerror or error,
            )
            sys.exit(1)
        yield listener


@contextlib.contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Until the web server handles signals itself, they end the start-up in an orderly way."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers; whoever made this thread decides
        return

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(0 if number == signal.SIGTERM else 130)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _import_in_background() -> Iterator[None]:
    """Import the web framework in a thread, once the scheduler process runs: that one must not wait for us."""
    is_over = threading.Event()

    def load() -> None:
        while not multiprocessing.active_children():
            if is_over.wait(_POLL_SECONDS):
                return
        import sglang.srt.entrypoints.http.runner  # noqa: F401  (fills sys.modules)

    threading.Thread(target=load, name="import-http", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _warn_when_open(server_args: ServerArgs) -> None:
    if server_args.host in _ALL_INTERFACES and not server_args.api_key:
        logger.warning(
            "SECURITY: the server listens on all interfaces (--host %s) and has no --api-key: "
            "everybody who can reach this machine can use and manage it.",
            server_args.host or "''",
        )
