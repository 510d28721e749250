"""Memory for large host tensors ahead of their use. Without effect where the kernel has no such call."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Sequence

import torch

_POPULATE_WRITE = 23  # advice of madvise(2), since Linux 5.14
_PAGE_BYTES = 4096
# The kernel keeps other threads of the process from getting memory meanwhile, so it is asked in small steps.
_STEP_BYTES = 4 << 20
_STEP_PAUSE = 0.002


def populate_in_background(tensors: Sequence[torch.Tensor], num_bytes: int) -> None:
    """Get memory for the first `num_bytes` of the tensors, an equal part of each, from a thread; what they hold stays as it is."""
    tensors = [tensor for tensor in tensors if tensor.is_cpu]
    if tensors:
        part = num_bytes // len(tensors)
        # The call leaves Python's lock alone, and a process need not wait for the thread to end.
        threading.Thread(target=_populate, args=(tensors, part), daemon=True).start()


def _populate(tensors: Sequence[torch.Tensor], num_bytes: int) -> None:
    for tensor in tensors:
        for start in range(0, min(num_bytes, tensor.nbytes), _STEP_BYTES):
            size = min(_STEP_BYTES, num_bytes - start, tensor.nbytes - start)
            if not _populate_range(tensor.data_ptr() + start, size):
                return
            time.sleep(_STEP_PAUSE)


def _populate_range(address: int, num_bytes: int) -> bool:
    """Whether the kernel could, for the whole pages within the range."""
    if sys.platform != "linux":
        return False
    start = -(-address // _PAGE_BYTES) * _PAGE_BYTES
    end = (address + num_bytes) // _PAGE_BYTES * _PAGE_BYTES
    if end <= start:
        return True
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return madvise(start, end - start, _POPULATE_WRITE) == 0
