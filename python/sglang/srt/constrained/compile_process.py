"""The parent's handle on a compile worker: starts it when needed, limits it, replaces it when it died."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time

import msgspec

from sglang.srt.constrained.base import BackendRecipe, InvalidGrammarError
from sglang.srt.constrained.compile_worker import CompileJob, CompileReply
from sglang.srt.utils.worker_pipe import close_pipes, read_frame, start_worker, write_frame

# Importing the grammar library takes seconds on a busy machine.
_START_TIMEOUT = 120.0
# The worker ends itself in time; after this much more it is killed.
_GRACE = 5.0


class CompileTimeoutError(Exception):
    """The grammar took longer than allowed."""


class CompileCrashError(Exception):
    """The worker died; on a first job this may be the backend's fault, afterwards it is the grammar's."""


class CompileProcess:
    """One worker. `compile` belongs to one thread; `kill` may be called from any."""

    def __init__(self, recipe: BackendRecipe, vocab_size: int) -> None:
        self._recipe = recipe
        self._vocab_size = vocab_size
        self._process: subprocess.Popen[bytes] | None = None
        self._decoder = msgspec.msgpack.Decoder(CompileReply)

    def start(self) -> None:
        """Start the worker unless it runs, and wait until it is ready. Raises CompileCrashError."""
        if self._process is not None and self._process.poll() is None:
            return
        self._process = start_worker("sglang.srt.constrained.compile_worker")
        self._exchange(self._recipe, _START_TIMEOUT)

    def compile(self, kind: str, text: str, timeout: float) -> bytes:
        """The compiled grammar, for `GrammarBackend.load`.

        Raises InvalidGrammarError, CompileTimeoutError after `timeout` seconds (not counting the start of a worker), or
        CompileCrashError.
        """
        self.start()
        reply = self._exchange(CompileJob(kind, text, self._vocab_size, timeout), timeout + _GRACE)
        if reply.error is not None:
            raise InvalidGrammarError(reply.error)
        return reply.data

    def kill(self) -> None:
        """End the worker now; a later `compile` starts another."""
        process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def _exchange(self, message: msgspec.Struct, timeout: float) -> CompileReply:
        process = self._process
        assert process is not None and process.stdin is not None, "no worker was started"
        deadline = time.monotonic() + timeout
        try:
            write_frame(process.stdin, message)
            return self._decoder.decode(read_frame(lambda size: self._read(size, deadline)))
        except TimeoutError as error:  # one that did not end itself
            self._reap(process)
            raise CompileTimeoutError from error
        except (OSError, EOFError) as error:
            code = self._reap(process)
            if code == -signal.SIGALRM:
                raise CompileTimeoutError from error
            raise CompileCrashError(f"the compile worker ended with code {code}") from error

    def _read(self, size: int, deadline: float) -> bytes:
        process = self._process
        assert process is not None and process.stdout is not None, "no worker was started"
        chunks = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while len(chunks) < size:
                if not selector.select(max(deadline - time.monotonic(), 0.0)):
                    raise TimeoutError
                chunk = os.read(process.stdout.fileno(), min(size - len(chunks), 1 << 20))
                if not chunk:
                    raise EOFError
                chunks += chunk
        return bytes(chunks)

    @staticmethod
    def _reap(process: subprocess.Popen[bytes]) -> int:
        """The exit code of a worker that closed its pipe, or is made to end now."""
        try:
            code = process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        close_pipes(process)
        return code
