"""The process that compiles grammars: `python -m sglang.srt.constrained.compile_worker`.

Grammars come from clients and the libraries that compile them offer no time limit, so they are compiled where running too
long, needing too much memory or crashing costs one process and no request but the one to blame. Messages on stdin and stdout are
frames of `utils/worker_pipe`; the first is a `BackendRecipe`, the others are `CompileJob`s.
"""

from __future__ import annotations

import msgspec

from sglang.srt.constrained.base import BackendRecipe, GrammarBackend, InvalidGrammarError
from sglang.srt.constrained.base import mask_words as _mask_words
from sglang.srt.utils.worker_pipe import (
    frames,
    limit_memory,
    open_pipes,
    time_limit,
    write_frame,
)

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
    source, sink = open_pipes()
    jobs = frames(source)
    recipe = next(jobs, None)
    if recipe is None:
        return
    backend = msgspec.msgpack.decode(recipe, type=BackendRecipe).build()
    limit_memory(_MEMORY_LIMIT_BYTES)
    write_frame(sink, CompileReply())  # ready
    decoder = msgspec.msgpack.Decoder(CompileJob)
    for job in jobs:
        write_frame(sink, _compile(backend, decoder.decode(job)))


def _compile(backend: GrammarBackend, job: CompileJob) -> CompileReply:
    import numpy as np

    try:
        with time_limit(job.timeout):
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


if __name__ == "__main__":
    main()
