"""A server in a process of its own, for tests that talk to it over HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import IO, Any

from sglang.srt.utils.common import kill_process_tree

DEFAULT_TIMEOUT_FOR_SERVER_LAUNCH = 600  # seconds
_POLL = 0.2


def popen_launch_server(
    model: str,
    base_url: str,
    timeout: float = DEFAULT_TIMEOUT_FOR_SERVER_LAUNCH,
    api_key: str | None = None,
    other_args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    return_stdout_stderr: tuple[IO[Any], IO[Any]] | None = None,
    device: str = "auto",
) -> subprocess.Popen[bytes]:
    """Start `sglang.launch_server` at `http://HOST:PORT` and wait until it generates.

    `env` is added to this process's environment; `return_stdout_stderr` are files that take the output. `device` "auto" leaves the choice
    to the server. Raises RuntimeError when the server ends, TimeoutError when it is not ready in `timeout` seconds; it is ended then.
    """
    host, _, port = base_url.removeprefix("http://").rpartition(":")
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", model]
    command += ["--host", host, "--port", port, *other_args]
    if device != "auto":
        command += ["--device", device]
    if api_key:
        command += ["--api-key", api_key]
    out, err = return_stdout_stderr or (None, None)
    process = subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, **(env or {})})
    try:
        _wait_until_ready(process, base_url, timeout, api_key)
    except BaseException:
        end_server(process)
        raise
    return process


def end_server(process: subprocess.Popen[bytes]) -> None:
    """End a server with its children; safe to call twice."""
    kill_process_tree(process.pid)
    process.wait()


def _wait_until_ready(
    process: subprocess.Popen[bytes], base_url: str, timeout: float, api_key: str | None
) -> None:
    request = urllib.request.Request(f"{base_url}/health_generate")
    if api_key:
        request.add_header("Authorization", f"Bearer {api_key}")
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with exit status {process.returncode}")
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                if reply.status == 200:
                    return
        except OSError:  # refused, or an error status: it is starting
            pass
        time.sleep(_POLL)
    raise TimeoutError(f"the server at {base_url} was not ready within {timeout:g} seconds")
