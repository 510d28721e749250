"""What processes share that do dangerous work for their parent over stdin and stdout: frames, and limits of the process itself.

A frame is an 8-byte little-endian length and a MessagePack message. The child calls `open_pipes`, `limit_memory` and `frames`, and does each
job within `time_limit`; the parent calls `start_worker`, `write_frame` and `read_frame`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import IO

import msgspec

_HEADER = struct.Struct("<Q")


# --- both sides


def write_frame(sink: IO[bytes], message: msgspec.Struct) -> None:
    """Send a message at once. Raises OSError when nobody reads."""
    data = msgspec.msgpack.encode(message)
    sink.write(_HEADER.pack(len(data)) + data)
    sink.flush()


def read_frame(read: Callable[[int], bytes]) -> bytes:
    """The next message, encoded. `read(size)` gives that many bytes, or fewer at the end; raises EOFError there."""
    (length,) = _HEADER.unpack(_read_all(read, _HEADER.size))
    return _read_all(read, length)


def _read_all(read: Callable[[int], bytes], size: int) -> bytes:
    data = read(size)
    if len(data) < size:
        raise EOFError
    return data


# --- the child


def open_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Where jobs come from and replies go. What libraries print goes to stderr; Ctrl-C is the parent's, who then closes stdin."""
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    return sys.stdin.buffer, sink


def frames(source: IO[bytes]) -> Iterator[bytes]:
    """Messages until the parent closes the pipe."""
    while True:
        try:
            yield read_frame(source.read)
        except EOFError:
            return


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """The kernel ends this process with SIGALRM when the time is over, whatever native code is doing then."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def limit_memory(num_bytes: int) -> None:
    """Allow so much address space on top of what is held now. Linux only: elsewhere other limits have to do."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = used + num_bytes
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


# --- the parent


def start_worker(module: str) -> subprocess.Popen[bytes]:
    """`python -m module` with this process' module path, one thread and no accelerator."""
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", module]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)


def close_pipes(process: subprocess.Popen[bytes]) -> None:
    """After the end of a worker; what was not sent is lost."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
