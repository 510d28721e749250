"""A machine other than the first: runs its tensor-parallel ranks and answers health checks, nothing else."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from sglang.srt.entrypoints.launch import check_ranks
from sglang.srt.entrypoints.scheduler_processes import SchedulerProcesses

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)

_HEALTH_PATHS = ("/health", "/health_generate", "/ping")


def serve_follower_node(server_args: ServerArgs) -> None:
    """Run the ranks of this machine until the server ends; blocks.

    Raises SystemExit with 1 when a rank cannot start, fails, or loses rank 0, and ConfigError when the model cannot be cut.
    """
    # Late: brings the message classes.
    from sglang.srt.managers.scheduler_client import SchedulerClient
    from sglang.srt.server_args import PortArgs

    check_ranks(server_args)
    ports = PortArgs.init_new(server_args)
    client = SchedulerClient(ports.scheduler_input_ipc_name, ports.tokenizer_ipc_name)
    processes = None
    try:
        processes = SchedulerProcesses(server_args, ports)
        client.wait_ready(processes.check_alive)
        processes.watch_pulses()
        with _health_page(server_args.host, server_args.port):
            logger.info("Node %d of %d is ready", server_args.node_rank, server_args.nnodes)
            failure = processes.wait()
    except RuntimeError as error:
        failure = str(error)
    finally:
        if processes is not None:
            processes.kill()
        client.close()
        ports.cleanup()
    if failure is not None:
        logger.error("Node %d ends: %s", server_args.node_rank, failure)
        sys.exit(1)


class _HealthHandler(BaseHTTPRequestHandler):
    timeout = 5.0

    def do_GET(self) -> None:
        self.send_response(200 if self.path in _HEALTH_PATHS else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Health checks are not news."""


@contextlib.contextmanager
def _health_page(host: str, port: int) -> Iterator[None]:
    """Answer health checks while the ranks live; without the port the node works all the same."""
    try:
        server = ThreadingHTTPServer((host, port), _HealthHandler)
    except OSError as error:
        logger.warning("No health page on %s port %d: %s", host, port, error.strerror or error)
        yield
        return
    threading.Thread(target=server.serve_forever, name="health-page", daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
