"""A server in a process of its own, for the measurements that go through HTTP."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping

START_TIMEOUT = 180.0
STOP_TIMEOUT = 15.0
POLL_SECONDS = 0.02


def running_server(
    flags: list[str], env: Mapping[str, str]
) -> contextlib.AbstractContextManager[tuple[str, float]]:
    """(base URL, seconds from start to ready) of a fresh server of ours."""
    command = [sys.executable, "-m", "sglang.launch_server", "--host", "127.0.0.1"]
    return running([*command, "{port}", "--log-level", "error", *flags], env)


@contextlib.contextmanager
def running(command: list[str], env: Mapping[str, str]) -> Iterator[tuple[str, float]]:
    """Any server; "{port}" in its command becomes `--port N`. Raises RuntimeError when it does not come up."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    at = command.index("{port}")
    command = [*command[:at], "--port", str(port), *command[at + 1 :]]
    url = f"http://127.0.0.1:{port}"
    started = time.perf_counter()
    process = subprocess.Popen(command, env=dict(env))
    try:
        _wait_ready(process, f"{url}/health", started)
        yield url, time.perf_counter() - started
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(process: subprocess.Popen, url: str, started: float) -> None:
    while time.perf_counter() - started < START_TIMEOUT:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with code {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(POLL_SECONDS)
    raise RuntimeError(f"the server was not ready after {START_TIMEOUT:g} s")
