"""Getting memory ahead of its use changes nothing that it holds."""

from __future__ import annotations

import sys
import threading

import pytest
import torch

from sglang.srt.mem_cache.memory_pool import lazy_zeros
from sglang.srt.platforms.host_memory import populate_in_background

CPU = torch.device("cpu")


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def _wait_for_threads(before: set[threading.Thread]) -> None:
    for thread in set(threading.enumerate()) - before:
        thread.join(30)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_populated_memory_is_resident_and_keeps_its_values():
    buffers = [lazy_zeros((64, 1 << 20), torch.uint8, CPU) for _ in range(2)]
    buffers[1][0, :100] = 7
    threads, before = set(threading.enumerate()), _resident_bytes()
    populate_in_background(buffers, 96 << 20)
    _wait_for_threads(threads)
    assert _resident_bytes() - before > 80 << 20
    assert buffers[1][0, :100].eq(7).all() and not buffers[0].any()


def test_nothing_to_populate():
    populate_in_background([], 1 << 20)
    populate_in_background([torch.empty(0)], 1 << 20)
