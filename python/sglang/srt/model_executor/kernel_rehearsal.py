"""Compiles the kernels of steps on several threads, before the steps first run.

A first start on a machine spends most of its capture in compilers, Triton's for the kernels and the system's for the functions that
launch them, one after the other although nearly all of that time is outside the interpreter. So the steps are rehearsed: our kernels
that are not compiled yet are noted with all that a compiler must know, then all are compiled together. Meanwhile no kernel of ours is
launched, not even one that is compiled already: what it would read was never written, and may be an index.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

logger = logging.getLogger(__name__)

# Modules of the package. Kernels of others are compiled and launched as ever: their results may be indices.
OURS = "sglang."
# Compiling one kernel takes a second at most, and there are not many more than these.
_MOST_THREADS = 16


class KernelRehearsal:
    """Kernels that are to be compiled. Triton must be installed."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], Any] = {}  # specialisation -> kernel

    def __len__(self) -> int:
        return len(self._found)

    @contextlib.contextmanager
    def pretend(self) -> Iterator[None]:
        """Inside, launches of our kernels have no effect; those that are not compiled yet are noted."""
        import triton  # late: only GPUs need it

        runtime, kernels = triton.knobs.runtime, triton.JITFunction
        before = runtime.jit_cache_hook, kernels.run
        runtime.jit_cache_hook, kernels.run = self._note, _without_launch(kernels.run)
        try:
            yield
        finally:
            runtime.jit_cache_hook, kernels.run = before

    def compile(self, device: torch.device) -> float:
        """Compile what was noted and load it on `device`; returns the seconds it took.

        A kernel that cannot be compiled or loaded says so where it is launched.
        """
        started = time.perf_counter()
        if self._found:
            threads = min(len(self._found), _MOST_THREADS, os.cpu_count() or 1)
            with ThreadPoolExecutor(threads, "compile", _use, (device,)) as pool:
                self._compile_with(pool)
            self._found.clear()
        return time.perf_counter() - started

    def _compile_with(self, pool: ThreadPoolExecutor) -> None:
        import triton

        with triton.AsyncCompileMode(pool, ignore_errors=True):
            kernels = [
                kernel.preload(specialization)
                for (*_, specialization), kernel in self._found.items()
            ]
        for _ in pool.map(_load, kernels):
            pass

    def _note(self, *, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        """Triton asks this before it compiles; True keeps it from compiling, and from launching."""
        if not fn.module.startswith(OURS):
            return False
        key = (fn.module, fn.name, compile["specialization_data"])
        self._found.setdefault(key, fn.jit_function)
        return True


def _without_launch(run: Callable[..., Any]) -> Callable[..., Any]:
    """Triton's `JITFunction.run`, which for our kernels is asked to warm up only: then it stops before the launch."""

    def run_ours(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        if kernel.module.startswith(OURS):
            kwargs["warmup"] = True
        return run(kernel, *args, **kwargs)

    return run_ours


def _use(device: torch.device) -> None:
    """For each thread: the current device is a thread's own."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _load(future: Any) -> None:
    """Have a compiled kernel make its launcher and load its code, which it does when its launcher is first asked for."""
    try:
        compiled = future.result(ignore_errors=True)
        if compiled is not None:
            compiled.run  # noqa: B018  (a property with that effect)
    except Exception as error:  # boundary of the thread: the launch meets the error again
        logger.debug("A kernel was not loaded ahead: %s: %s", type(error).__name__, error)
