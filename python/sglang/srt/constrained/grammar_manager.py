"""Grammars for the scheduler: compiled elsewhere, cached, handed out as matchers.

Threads cannot be ended, and compilation of a client's grammar may take forever or crash. So a driver thread, which only waits,
feeds a compile worker process with a time limit and a memory limit; the result is loaded here, which is fast. Both are started by the
first request that brings a grammar. All results are taken over in `poll`, on the scheduler's thread; nothing else is shared.
"""

from __future__ import annotations

import collections
import logging
import queue
import threading
import time
from typing import Any

import msgspec

from sglang.srt.constrained.base import (
    GRAMMAR_KINDS,
    BackendRecipe,
    CompiledGrammar,
    GrammarBackend,
    GrammarMatcher,
    GrammarOptions,
    InvalidGrammarError,
    RecipeMaker,
)
from sglang.srt.constrained.compile_process import (
    CompileCrashError,
    CompileProcess,
    CompileTimeoutError,
)
from sglang.srt.utils.errors import ConfigError, RequestError

logger = logging.getLogger(__name__)

# Seconds that one compilation may take, unless the server says otherwise.
COMPILE_TIMEOUT = 10.0
_MAX_QUEUED = 1024
_MAX_CACHE_BYTES = 512 << 20
# A time limit may have been missed because the machine was busy, so this verdict is not final.
_TIMEOUT_VERDICT_SECONDS = 60.0

_registered: dict[str, RecipeMaker] = {}


def register_grammar_backend(name: str, factory: RecipeMaker) -> None:
    """Make `--grammar-backend NAME` available. `factory` describes the backend for a tokenizer, see `RecipeMaker`."""
    _registered[name] = factory


class GrammarManager:
    """Compiles, caches and hands out grammars. Owned by the scheduler and called from its thread only.

    Args:
        tokenizer: Hugging Face tokenizer; None turns grammars off.
        vocab_size: width of the logits. Ids that the tokenizer does not know are never allowed.
        eos_ids: tokens that may end a text; empty: the tokenizer's.
        backend: xgrammar, llguidance, none or a registered name.
        compile_timeout: seconds that one compilation may take.
        queue_timeout: seconds that a grammar may wait for its turn.
        cache_size: how many grammars are kept, in least-recently-used order.

    Raises ConfigError for an unknown backend or an option that the backend does not have.
    """

    def __init__(
        self,
        tokenizer: Any,
        vocab_size: int,
        eos_ids: list[int],
        backend: str = "xgrammar",
        *,
        options: GrammarOptions | None = None,
        compile_timeout: float = COMPILE_TIMEOUT,
        queue_timeout: float = 50.0,
        cache_size: int = 256,
    ) -> None:
        options = options or GrammarOptions()
        _check_backend(backend, options)
        self._backend_name = backend
        self._unavailable: str | None = None
        if backend == "none" or tokenizer is None:
            self._unavailable = "the server runs without a grammar backend"
        self._cache = _Cache(cache_size)
        self._pending: dict[tuple[str, str], list[GrammarFuture]] = {}
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._results: collections.deque[_Result] = collections.deque()
        stop_ids = sorted(token for token in set(eos_ids) if 0 <= token < vocab_size)
        self._driver = _Driver(
            _RecipeSource(tokenizer, vocab_size, stop_ids, backend, options),
            self._jobs,
            self._results,
            compile_timeout,
            queue_timeout,
        )

    @property
    def num_pending(self) -> int:
        """Grammars that are being compiled or wait for it."""
        return len(self._pending)

    def submit(self, kind: str, text: str) -> GrammarFuture:
        """Ask for a matcher. The future is done at once when the grammar is cached or cannot be had.

        Args:
            kind: json, regex, ebnf or structural_tag.
            text: the grammar itself.
        """
        assert kind in GRAMMAR_KINDS, f"kind={kind!r} is not one of {GRAMMAR_KINDS}"
        key = (kind, text)
        future = GrammarFuture()
        if self._unavailable is not None:
            future._set(RequestError(f"{kind} cannot be enforced: {self._unavailable}"))
        elif (entry := self._cache.get(key)) is not None:
            future._set(entry)
        elif key in self._pending:
            self._pending[key].append(future)
        elif len(self._pending) >= _MAX_QUEUED:
            future._set(RequestError("too many grammars wait to be compiled; try again later", 503))
        else:
            self._pending[key] = [future]
            self._driver.ensure_started()
            self._jobs.put(_Job(kind, text, time.monotonic()))
        return future

    def poll(self) -> list[GrammarFuture]:
        """Take over what has been compiled; returns the futures that became done. Never waits."""
        ready = []
        while self._results:
            result = self._results.popleft()
            if result.lasts > 0:
                self._cache.put(result.key, result.outcome, result.size, result.lasts)
            if result.unavailable is not None:
                self._unavailable = result.unavailable
            for future in self._pending.pop(result.key, []):
                future._set(result.outcome)
                ready.append(future)
        return ready

    def close(self) -> None:
        """End the worker. Pending futures stay undone."""
        self._driver.close()


class GrammarFuture:
    """A matcher to come. Changes only inside `GrammarManager.submit` and `poll`."""

    def __init__(self) -> None:
        self._outcome: CompiledGrammar | RequestError | None = None

    @property
    def done(self) -> bool:
        return self._outcome is not None

    def matcher(self) -> GrammarMatcher:
        """A new matcher. Raises RequestError (400 for a bad grammar or one that takes too long); the future must be done."""
        assert self._outcome is not None, "the grammar is still being compiled"
        if isinstance(self._outcome, RequestError):
            raise self._outcome
        return self._outcome.new_matcher()

    def _set(self, outcome: CompiledGrammar | RequestError) -> None:
        self._outcome = outcome


class _Job(msgspec.Struct):
    kind: str
    text: str
    submitted: float  # time.monotonic


class _Result(msgspec.Struct):
    key: tuple[str, str]
    outcome: Any  # CompiledGrammar | RequestError
    size: int = 0  # bytes
    lasts: float = float("inf")  # seconds that the outcome may be cached
    unavailable: str | None = None  # set when no grammar will ever compile


class _RecipeSource(msgspec.Struct):
    """What it takes to describe the backend; asked late, for it imports the library."""

    tokenizer: Any
    vocab_size: int
    eos_ids: list[int]
    backend: str
    options: GrammarOptions

    def make(self) -> BackendRecipe:
        maker = _registered.get(self.backend) or _built_in_maker(self.backend)
        return maker(self.tokenizer, self.vocab_size, self.eos_ids, self.options)


class _Driver:
    """The thread between the queues and the compile worker."""

    def __init__(
        self,
        source: _RecipeSource,
        jobs: queue.Queue[_Job | None],
        results: collections.deque[_Result],
        compile_timeout: float,
        queue_timeout: float,
    ) -> None:
        self._source = source
        self._jobs = jobs
        self._results = results
        self._compile_timeout = compile_timeout
        self._queue_timeout = queue_timeout
        self._thread: threading.Thread | None = None
        self._process: CompileProcess | None = None
        self._closed = False

    def ensure_started(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="grammar-compiler", daemon=True)
            self._thread.start()

    def close(self) -> None:
        self._closed = True
        self._jobs.put(None)
        if self._process is not None:
            self._process.kill()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
            if self._process is not None:  # started between the two looks
                self._process.kill()

    def _run(self) -> None:
        try:
            recipe = self._source.make()
            backend = recipe.build()
            self._process = CompileProcess(recipe, self._source.vocab_size)
            self._process.start()
        except Exception as error:  # a library may refuse a tokenizer in any way it likes
            if not self._closed:
                self._refuse_all(error)
            return
        # The wait for the library's import is nobody's fault.
        ready = time.monotonic()
        while (job := self._jobs.get()) is not None and not self._closed:
            self._results.append(self._work(backend, self._process, job, ready))

    def _work(
        self, backend: GrammarBackend, process: CompileProcess, job: _Job, ready: float
    ) -> _Result:
        key = (job.kind, job.text)
        waited = time.monotonic() - max(job.submitted, ready)
        if waited > self._queue_timeout:
            message = f"the grammar waited {waited:.0f} s for its turn; try again later"
            return _Result(key, RequestError(message, 503), lasts=0.0)
        try:
            data = process.compile(job.kind, job.text, self._compile_timeout)
            return _Result(key, backend.load(data), size=len(data) + len(job.text))
        except InvalidGrammarError as error:
            return _Result(key, RequestError(f"invalid {job.kind}: {error}"), size=len(job.text))
        except CompileTimeoutError:
            message = (
                f"{job.kind} takes more than {self._compile_timeout:g} s to compile; simplify it"
            )
            refusal = RequestError(message)
            return _Result(key, refusal, size=len(job.text), lasts=_TIMEOUT_VERDICT_SECONDS)
        except CompileCrashError as error:
            logger.warning("A %s grammar ended its compiler: %s", job.kind, error)
            message = f"{job.kind} cannot be compiled: it is too large or crashes the compiler"
            refusal = RequestError(message)
            return _Result(key, refusal, size=len(job.text), lasts=_TIMEOUT_VERDICT_SECONDS)
        except Exception as error:  # the boundary of the request: it fails, the thread lives on
            logger.exception("Compiling a %s grammar failed", job.kind)
            message = f"compiling the {job.kind} failed: {type(error).__name__}"
            return _Result(key, RequestError(message, 500), lasts=0.0)

    def _refuse_all(self, error: Exception) -> None:
        name = self._source.backend
        logger.warning(
            "Grammar backend %s is off, requests with a grammar are refused: %s", name, error
        )
        reason = f"grammar backend {name} cannot be used with this tokenizer or installation"
        while (job := self._jobs.get()) is not None:
            message = f"{job.kind} cannot be enforced: {reason}"
            self._results.append(
                _Result((job.kind, job.text), RequestError(message), lasts=0.0, unavailable=reason)
            )


class _Cache:
    """Least recently used outcomes, bounded in number and in bytes."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._entries: collections.OrderedDict[tuple[str, str], tuple[Any, int, float]]
        self._entries = collections.OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[str, str]) -> Any:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if time.monotonic() > entry[2]:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: tuple[str, str], outcome: Any, size: int, lasts: float) -> None:
        if key in self._entries:
            self._drop(key)
        self._entries[key] = (outcome, size, time.monotonic() + lasts)
        self._bytes += size
        while len(self._entries) > self._max_entries or self._bytes > _MAX_CACHE_BYTES:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: tuple[str, str]) -> None:
        self._bytes -= self._entries.pop(key)[1]


def _check_backend(backend: str, options: GrammarOptions) -> None:
    allowed = ["xgrammar", "llguidance", "none", *_registered]
    if backend not in allowed:
        raise ConfigError(f"grammar_backend={backend!r} must be one of {', '.join(allowed)}")
    if backend == "xgrammar" and options.whitespace_pattern is not None:
        raise ConfigError(
            "constrained_json_whitespace_pattern is not supported by grammar_backend=xgrammar; use "
            "--grammar-backend llguidance, or --constrained-json-disable-any-whitespace"
        )


def _built_in_maker(backend: str) -> RecipeMaker:
    # Imported late: each needs its own library.
    if backend == "llguidance":
        from sglang.srt.constrained import llguidance_backend

        return llguidance_backend.make_recipe
    from sglang.srt.constrained import xgrammar_backend

    return xgrammar_backend.make_recipe
