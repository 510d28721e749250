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
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
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

    def compile(self, device: torch.device, at_most: int | None = None) -> float:
        """Compile what was noted, `at_most` so many of it, and load it on `device`; returns the seconds it took.

        What was noted first begins first. A kernel that cannot be compiled or loaded says so where it is launched.
        """
        started = time.perf_counter()
        keys = list(self._found)[:at_most]
        if keys:
            kernels = [(self._found.pop(key), key[-1]) for key in keys]
            threads = min(len(kernels), _MOST_THREADS, os.cpu_count() or 1)
            with ThreadPoolExecutor(threads, "compile", _use, (device,)) as pool:
                _compile_with(_CompileAndLoad(pool), kernels)
        return time.perf_counter() - started

    def _note(self, *, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        """Triton asks this before it compiles; True keeps it from compiling, and from launching."""
        if not fn.module.startswith(OURS):
            return False
        key = (fn.module, fn.name, compile["specialization_data"])
        self._found.setdefault(key, fn.jit_function)
        return True


class _CompileAndLoad(Executor):
    """Has each kernel make its launcher and load its code too, which it does otherwise when it is first launched.

    A launcher takes another compiler, which runs beside the compiling of others.
    """

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    def submit(self, compile: Callable[[], Any], /) -> Future[Any]:  # type: ignore[override]
        return self._pool.submit(lambda: _loaded(compile()))


def _compile_with(executor: Executor, kernels: list[tuple[Any, str]]) -> None:
    import triton

    with triton.AsyncCompileMode(executor, ignore_errors=True):
        for kernel, specialization in kernels:
            kernel.preload(specialization)


def _without_launch(run: Callable[..., Any]) -> Callable[..., Any]:
    """Triton's `JITFunction.run`, which for our kernels is asked to warm up only: then it stops before the launch.

    Each form of a launch is asked for once: a kernel that is not compiled is not remembered by Triton, which would find out what it is
    for each layer anew.
    """
    asked: set[Hashable] = set()

    def run_ours(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        if not kernel.module.startswith(OURS):
            return run(kernel, *args, **kwargs)
        options = ((name, _form(value)) for name, value in kwargs.items() if name != "grid")
        form = (id(kernel), *map(_form, args), *options)
        if form in asked:
            return None
        asked.add(form)
        return run(kernel, *args, **kwargs | {"warmup": True})

    return run_ours


def _form(value: Any) -> Hashable:
    """What Triton can tell of an argument, or more: a kernel for each."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    return type(value), value


def _use(device: torch.device) -> None:
    """For each thread: the current device is a thread's own."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _loaded(kernel: Any) -> Any:
    try:
        kernel.run  # noqa: B018  (a property with that effect)
    except Exception as error:  # boundary of the thread: the launch meets the error again
        logger.debug("A kernel was not loaded ahead: %s: %s", type(error).__name__, error)
    return kernel
