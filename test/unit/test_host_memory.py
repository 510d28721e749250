"""Getting memory ahead of its use changes nothing that it holds."""

from __future__ import annotations

import ctypes
import mmap
import sys

import pytest
import torch

from sglang.srt.mem_cache.memory_pool import lazy_zeros
from sglang.srt.platforms.host_memory import populate

CPU = torch.device("cpu")
PAGE = mmap.PAGESIZE


def _resident_bytes(tensor: torch.Tensor) -> int:
    """By mincore(2): pages of this tensor alone, whatever the rest of the process does."""
    start = -(-tensor.data_ptr() // PAGE) * PAGE
    num_pages = (tensor.data_ptr() + tensor.nbytes - start) // PAGE
    pages = (ctypes.c_ubyte * num_pages)()
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    assert mincore(start, num_pages * PAGE, pages) == 0, ctypes.get_errno()
    return sum(page & 1 for page in pages) * PAGE


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_populated_memory_is_resident_and_keeps_its_values():
    buffers = [lazy_zeros((64, 1 << 20), torch.uint8, CPU) for _ in range(2)]
    buffers[1][0, :100] = 7
    assert sum(map(_resident_bytes, buffers)) < 8 << 20
    populate(buffers, 96 << 20)
    assert all(_resident_bytes(buffer) > 40 << 20 for buffer in buffers)
    assert buffers[1][0, :100].eq(7).all() and not buffers[0].any()


def test_nothing_to_populate():
    populate([], 1 << 20)
    populate([torch.empty(0)], 1 << 20)
