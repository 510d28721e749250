"""Getting memory ahead of its use changes nothing that it holds."""

from __future__ import annotations

import sys

import pytest
import torch

from sglang.srt.mem_cache.memory_pool import lazy_zeros
from sglang.srt.platforms.host_memory import populate

CPU = torch.device("cpu")


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_populated_memory_is_resident_and_keeps_its_values():
    buffers = [lazy_zeros((64, 1 << 20), torch.uint8, CPU) for _ in range(2)]
    buffers[1][0, :100] = 7
    before = _resident_bytes()
    populate(buffers, 96 << 20)
    assert _resident_bytes() - before > 80 << 20
    assert buffers[1][0, :100].eq(7).all() and not buffers[0].any()


def test_nothing_to_populate():
    populate([], 1 << 20)
    populate([torch.empty(0)], 1 << 20)
