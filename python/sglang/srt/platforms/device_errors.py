"""What an error of torch, CUDA or a library means for the process: memory ran out and work can go on, or the device is lost.

Libraries report the same thing in several ways, some by the text of a RuntimeError only, so texts are compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

_OUT_OF_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
)
# What makes a step need less memory.
STEP_FLAGS = "--mem-fraction-static, --chunked-prefill-size or --max-running-requests"
# After these the context of the process is broken: every later call fails too.
_LOST = (
    "device-side assert",
    "illegal memory access",
    "illegal address",
    "illegal instruction",
    "misaligned address",
    "unspecified launch failure",
    "uncorrectable ECC error",
    "hardware stack error",
    "invalid program counter",
)
_ALLOCATION = re.compile(r"[Tt]ried to allocate ([\d.]+) (KiB|MiB|GiB|bytes)", re.ASCII)


def is_out_of_memory(error: BaseException) -> bool:
    """Did memory run out, in `error` or in one that it hides? The process can go on with less."""
    chain = list(_chain(error))
    return any(map(_says_out_of_memory, chain)) and not any(map(_says_lost, chain))


def is_device_lost(error: BaseException) -> bool:
    """Is the device unusable for this process from now on?"""
    return any(map(_says_lost, _chain(error)))


def tried_to_allocate(error: BaseException) -> str:
    """`tried to allocate 2.00 GiB`, as far as the error says so, else `an allocation failed`."""
    for one in _chain(error):
        found = _ALLOCATION.search(str(one))
        if found is None:
            continue
        size, unit = found.groups()
        if unit == "bytes":
            size, unit = f"{float(size) / 2**30:.2f}", "GiB"
        return f"tried to allocate {size} {unit}"
    return "an allocation failed"


def describe_failure(error: BaseException) -> str:
    """One line for the log and for clients: what failed, and what to do where that is known."""
    text = f"{type(error).__name__}: {first_line(error)}"
    if is_out_of_memory(error):
        return f"{text}. Use a lower {STEP_FLAGS}"
    if is_device_lost(error):
        return f"{text}. The GPU cannot be used by this process any more; run with CUDA_LAUNCH_BLOCKING=1 to find the kernel"
    return text


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _says_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def _says_lost(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST)


def first_line(error: BaseException) -> str:
    """What an error says, without the hints that torch adds below."""
    return str(error).strip().partition("\n")[0]
