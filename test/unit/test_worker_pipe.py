"""Frames between a process and its worker, and the limits that a worker sets itself."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from sglang.srt.utils.worker_pipe import close_pipes, frames, read_frame, start_worker, write_frame

WORKER = """
import sys
from sglang.srt.utils import worker_pipe
import msgspec


class Message(msgspec.Struct):
    text: str


source, sink = worker_pipe.open_pipes()
worker_pipe.limit_memory(256 << 20)
print("noise of a library")
for frame in worker_pipe.frames(source):
    message = msgspec.msgpack.decode(frame, type=Message)
    with worker_pipe.time_limit(0.2 if message.text == "long" else 60.0):
        while message.text == "long":
            pass
        try:
            size = len(bytearray(1 << 30)) if message.text == "large" else 0
        except MemoryError:
            message.text = "too large"
    worker_pipe.write_frame(sink, message)
"""


class Message(msgspec.Struct):
    text: str


def test_frames() -> None:
    pipe = io.BytesIO()
    for text in ("one", "", "x" * 100_000):
        write_frame(pipe, Message(text))
    pipe.seek(0)
    found = [msgspec.msgpack.decode(frame, type=Message).text for frame in frames(pipe)]
    assert found == ["one", "", "x" * 100_000]


@pytest.mark.parametrize("num_missing", [1, 5, 12])
def test_a_frame_that_is_cut_off_is_the_end(num_missing: int) -> None:
    pipe = io.BytesIO()
    write_frame(pipe, Message("abc"))
    cut = pipe.getvalue()[:-num_missing]
    with pytest.raises(EOFError):
        read_frame(io.BytesIO(cut).read)
    assert list(frames(io.BytesIO(cut))) == []


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    process = start_worker("my_worker")
    yield process
    process.kill()
    process.wait()
    close_pipes(process)


def ask(process: subprocess.Popen[bytes], text: str) -> str:
    assert process.stdin is not None and process.stdout is not None
    write_frame(process.stdin, Message(text))
    return msgspec.msgpack.decode(read_frame(process.stdout.read), type=Message).text


def test_what_a_worker_prints_is_no_reply(worker: subprocess.Popen[bytes]) -> None:
    assert [ask(worker, text) for text in ("a", "b")] == ["a", "b"]
    worker.send_signal(signal.SIGINT)  # the parent's affair
    assert ask(worker, "c") == "c"
    assert worker.stdin is not None
    worker.stdin.close()
    assert worker.wait(30) == 0


def test_a_worker_that_takes_too_long_ends_itself(worker: subprocess.Popen[bytes]) -> None:
    with pytest.raises(EOFError):
        ask(worker, "long")
    assert worker.wait(30) == -signal.SIGALRM


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited on Linux")
def test_memory_is_limited(worker: subprocess.Popen[bytes]) -> None:
    assert ask(worker, "large") == "too large"
    assert ask(worker, "small") == "small"
