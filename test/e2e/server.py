"""A real server in a child process, on loopback, for tests that need the whole way of a request."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from sglang.srt.arg_groups.ports import find_free_port

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT = 120.0


class Server:
    """Handle of a running server."""

    def __init__(self, process: subprocess.Popen, port: int, log: Path) -> None:
        self.process = process
        self.base_url = f"http://127.0.0.1:{port}"
        self.log = log

    def request(
        self,
        path: str,
        body=None,
        *,
        method: str | None = None,
        headers=None,
        raw: bytes | None = None,
    ) -> tuple[int, str]:
        """(status, text); errors are answers, not exceptions."""
        data = raw if raw is not None else (None if body is None else json.dumps(body).encode())
        request = urllib.request.Request(self.base_url + path, data=data, method=method)
        request.add_header("Content-Type", "application/json")
        for key, value in (headers or {}).items():
            request.add_header(key, value)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def post(self, path: str, body, **kwargs) -> tuple[int, dict]:
        status, text = self.request(path, body, **kwargs)
        return status, json.loads(text)

    def get(self, path: str, **kwargs) -> tuple[int, str]:
        return self.request(path, None, **kwargs)

    def children(self) -> list[int]:
        """Process ids of the server's children (the scheduler)."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = entry.read_text().rpartition(")")[2].split()
                if int(fields[1]) == self.process.pid:
                    found.append(int(entry.parent.name))
        return found


def start(
    args: list[str],
    log: Path,
    env: dict[str, str] | None = None,
    port: int | None = None,
    program: list[str] | None = None,
) -> Server:
    port = port or find_free_port()
    program = program or [sys.executable, "-m", "sglang.launch_server"]
    command = [*program, "--port", str(port), *args]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            cwd=ROOT,
        )
    return Server(process, port, log)


def wait_ready(server: Server) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise AssertionError(f"server ended early:\n{server.log.read_text()[-4000:]}")
        with contextlib.suppress(OSError):
            if server.get("/health")[0] == 200:
                return
        time.sleep(0.05)
    raise AssertionError(f"server not ready:\n{server.log.read_text()[-4000:]}")


@contextlib.contextmanager
def running(
    args: list[str],
    log: Path,
    env: dict[str, str] | None = None,
    program: list[str] | None = None,
) -> Iterator[Server]:
    server = start(args, log, env, program=program)
    try:
        wait_ready(server)
        yield server
    finally:
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGTERM)
            try:
                server.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                server.process.kill()
                raise
