"""The life of a server process around a scripted engine: ready line, exit codes, taken port."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

HERE = Path(__file__).resolve().parent
SCRIPT = """
import importlib.util, sys, threading
spec = importlib.util.spec_from_file_location("fakes", sys.argv[1] + "/conftest.py")
fakes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fakes)
from sglang.srt.entrypoints.http_server import launch_server

class Front:
    def __init__(self):
        self.tokenizer_manager = fakes.FakeManager(fakes.make_tokenizer())
    def close(self):
        print("front closed", file=sys.stderr, flush=True)

def start(server_args, on_scheduler_death):
    def wait_for_word():
        if sys.stdin.readline().strip() == "die":
            on_scheduler_death("the scheduler was hit by a bus")
    if sys.argv[3] == "broken":
        raise RuntimeError("the weights are missing")
    threading.Thread(target=wait_for_word, daemon=True).start()
    return Front()

args = fakes.make_args(port=int(sys.argv[2]), log_level="info", host=sys.argv[4])
launch_server(args, front_factory=start)
"""


class ServerProcess:
    """A child process; `wait_for` reads its log."""

    def __init__(self, port=0, mode="good", host="127.0.0.1"):
        root = HERE.parents[2]
        env = {**os.environ, "PYTHONPATH": str(root / "python"), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(HERE), str(port), mode, host],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        self._timer = threading.Timer(60, self.process.kill)
        self._timer.start()
        self.log = ""

    def wait_for(self, pattern):
        for line in self.process.stderr:
            self.log += line
            match = re.search(pattern, line)
            if match:
                return match
        raise AssertionError(f"{pattern!r} not in the log:\n{self.log}")

    def end(self):
        self.log += self.process.stderr.read()
        return self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._timer.cancel()
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stderr.close()


def test_sigterm_ends_a_ready_server_with_0():
    with ServerProcess() as server:
        address = server.wait_for(r"Uvicorn running on http://127.0.0.1:(\d+)")
        server.wait_for("fired up and ready to roll")
        assert httpx.get(f"http://127.0.0.1:{address[1]}/health").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0, server.log
        assert "front closed" in server.log and "Traceback" not in server.log


def test_dead_scheduler_ends_the_server_with_1():
    with ServerProcess() as server:
        server.wait_for("fired up and ready to roll")
        server.process.stdin.write("die\n")
        server.process.stdin.flush()
        assert server.end() == 1
        assert "hit by a bus" in server.log and "front closed" in server.log


def test_engine_that_cannot_start():
    with ServerProcess(mode="broken") as server:
        assert server.end() == 1
        assert "the weights are missing" in server.log and "Traceback" not in server.log


def test_taken_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with ServerProcess(port=taken.getsockname()[1]) as server:
            assert server.end() == 1
            assert "choose another --port" in server.log and "Traceback" not in server.log


def test_open_server_without_key_is_warned_about():
    with ServerProcess(mode="broken", host="0.0.0.0") as server:
        server.end()
        assert "SECURITY" in server.log


def test_variables_that_nobody_reads_are_warned_about(monkeypatch):
    monkeypatch.setenv("SGLANG_NO_SUCH_VARIABLE", "1")
    monkeypatch.setenv("SGLANG_LOG_GC", "1")
    with ServerProcess(mode="broken") as server:
        server.end()
        assert server.log.count("SGLANG_NO_SUCH_VARIABLE is set, but nothing reads it") == 1
        assert server.log.count("SGLANG_LOG_GC is known but has no effect yet") == 1


def test_launch_module_is_light():
    code = (
        "import sys, sglang.srt.entrypoints.http_server; "
        "print([m for m in ('fastapi', 'uvicorn', 'pydantic', 'torch') if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[2] / "python")}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


@pytest.mark.parametrize("module", ["runner", "app"])
def test_web_half_brings_no_torch(module):
    code = f"import sys, sglang.srt.entrypoints.http.{module}; print('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[2] / "python")}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert result.stdout.strip() == "False", result.stdout + result.stderr
