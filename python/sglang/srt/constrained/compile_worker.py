"""The process that compiles grammars: `python -m sglang.srt.constrained.compile_worker`.

Grammars come from clients and the libraries that compile them offer no time limit, so they are compiled where running too
long, needing too much memory or crashing costs one process and no request but the one to blame. Frames on stdin and stdout
are an 8-byte little-endian length and a msgpack message; the first is a `BackendRecipe`, the others are `CompileJob`s.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
from typing import BinaryIO

import msgspec

from sglang.srt.constrained.base import BackendRecipe, GrammarBackend, InvalidGrammarError
from sglang.srt.constrained.base import mask_words as _mask_words

FRAME_HEADER = struct.Struct("<Q")
# Address space that compilations may take on top of what the loaded libraries hold.
_MEMORY_LIMIT_BYTES = 4 << 30


class CompileJob(msgspec.Struct):
    kind: str
    text: str
    vocab_size: int
    timeout: float  # seconds; the process ends itself with SIGALRM when they are over


class CompileReply(msgspec.Struct):
    """`data` for `GrammarBackend.load`, or the reason why there is none."""

    data: bytes = b""
    error: str | None = None


def main() -> None:
    """Serve jobs until stdin closes."""
    source = sys.stdin.buffer
    # Libraries may print; only frames may reach the parent.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes stdin
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    recipe = _read_frame(source)
    if recipe is None:
        return
    backend = msgspec.msgpack.decode(recipe, type=BackendRecipe).build()
    _limit_memory()
    _write_frame(sink, CompileReply())  # ready
    decoder = msgspec.msgpack.Decoder(CompileJob)
    while (frame := _read_frame(source)) is not None:
        _write_frame(sink, _compile(backend, decoder.decode(frame)))


def _compile(backend: GrammarBackend, job: CompileJob) -> CompileReply:
    import numpy as np

    # The kernel ends the process, whatever native code is doing at that time.
    signal.setitimer(signal.ITIMER_REAL, job.timeout)
    try:
        compiled = backend.compile(job.kind, job.text)
        # Some libraries leave work to the first mask.
        mask = np.zeros(_mask_words(job.vocab_size), dtype=np.int32)
        compiled.new_matcher().fill_mask(mask)
        if not mask.any():
            return CompileReply(
                error="no text belongs to it, or none that the vocabulary can begin"
            )
        return CompileReply(data=compiled.dump())
    except InvalidGrammarError as error:
        return CompileReply(error=str(error))
    except (MemoryError, RecursionError) as error:
        return CompileReply(error=f"the grammar is too large ({type(error).__name__})")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _limit_memory() -> None:
    """Linux only: elsewhere the time limit has to do."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = used + _MEMORY_LIMIT_BYTES
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _read_frame(source: BinaryIO) -> bytes | None:
    header = source.read(FRAME_HEADER.size)
    if len(header) < FRAME_HEADER.size:
        return None
    return source.read(FRAME_HEADER.unpack(header)[0])


def _write_frame(sink: BinaryIO, message: msgspec.Struct) -> None:
    data = msgspec.msgpack.encode(message)
    sink.write(FRAME_HEADER.pack(len(data)) + data)
    sink.flush()


if __name__ == "__main__":
    main()
