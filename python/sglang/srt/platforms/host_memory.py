"""Memory for large host tensors ahead of their use. Without effect where the kernel has no such call."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence

import torch

_POPULATE_WRITE = 23  # advice of madvise(2), since Linux 5.14
_PAGE_BYTES = 4096


def populate(tensors: Sequence[torch.Tensor], num_bytes: int) -> None:
    """Get memory for the first `num_bytes` of the tensors, an equal part of each; what they hold stays as it is."""
    tensors = [tensor for tensor in tensors if tensor.is_cpu]
    for tensor in tensors:
        part = min(num_bytes // len(tensors), tensor.nbytes)
        if not _populate_range(tensor.data_ptr(), part):
            return


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
