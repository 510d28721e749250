"""What a scheduler process with a GPU begins before anything else, in threads beside its imports.

The driver makes the GPU's context, transformers reads the names of thousands of files, Triton reads its library and has a C module
compiled: none of that needs the interpreter all the time. Whoever needs what is missing makes it, and meets the error that ended it here.

What they import must not import torch or anything of this package, which the main thread imports meanwhile: two threads that import
modules which need each other see them half made. transformers puts another module in its own place at the end of its import; who waited
for that import has the one that was there first, without its names. Hence `wait_for_imports` before its first use.

Between the two, no garbage is collected: what is imported stays, and looking through it again and again is a tenth of its import.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import logging
import os
import threading
from collections.abc import Callable

from sglang.srt.utils.light_transformers import import_model_names

logger = logging.getLogger(__name__)

DRIVER = "libcuda.so.1"
_IMPORTING = "import"


def begin_prefetch(device: str, gpu: int) -> list[threading.Thread]:
    """Start the threads, and return them; none for the CPU and where there is no driver. `gpu` is the number of this rank's.

    To be followed by `wait_for_imports`, until which no garbage is collected.
    """
    gc.disable()
    if device == "cpu":
        return []
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return []  # torch says so later, in its own words
    # As torch sets it, which comes too late for a context made here: kernels are loaded when they are first used.
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")
    return [
        _start("make-context", lambda: make_context(driver, gpu)),
        _start(f"{_IMPORTING}-transformers", import_model_names),
        _start("prepare-triton", _prepare_triton),
    ]


def wait_for_imports(threads: list[threading.Thread]) -> None:
    """Until the threads that import are done, as the main thread must before it uses what they import.

    No later collection looks at what there is now: a quarter of a million objects, which a step would wait for.
    """
    for thread in threads:
        if thread.name.startswith(_IMPORTING):
            thread.join()
    gc.freeze()
    gc.enable()


def make_context(driver: ctypes.CDLL, gpu: int) -> bool:
    """Make the primary context of `gpu`, which torch then finds; False where the driver refuses. ctypes lets go of the interpreter."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    calls: tuple[Callable[[], int], ...] = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), gpu),
        lambda: driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
    )
    return all(call() == 0 for call in calls)


def _prepare_triton() -> None:
    """What Triton does once in a process: the hash of its own files, and its module of driver calls."""
    cache = importlib.import_module("triton.runtime.cache")
    cache.triton_key()
    importlib.import_module("triton.backends.nvidia.driver").CudaUtils()


def _start(name: str, work: Callable[[], object]) -> threading.Thread:
    def run() -> None:
        try:
            work()
        except Exception as error:  # boundary of the thread: its user meets the error again
            logger.debug("%s ended early: %s: %s", name, type(error).__name__, error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
