"""The host as the device: work is done when the call returns, so streams and events do nothing."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from sglang.srt.platforms.base import Platform
from sglang.srt.platforms.host_memory import populate


class CpuPlatform(Platform):
    name = "cpu"
    is_cpu = True
    distributed_backend = "gloo"

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def activate(self) -> None:
        """Let the C library keep the memory of large activations between steps.

        By default it returns every block above a few hundred KiB to the system and faults it in anew at the next use, which
        costs more than the arithmetic of a norm or an activation.
        """
        libc = ctypes.CDLL(None)
        if sys.platform == "linux" and hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_THRESHOLD, _KEEP_BLOCKS_UP_TO)
            libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_FREE_UP_TO)

    def prepare_cache(self, buffers: Sequence[torch.Tensor]) -> None:
        """The first prompts need not wait for memory, which a virtual machine may be slow to give."""
        populate(buffers, POPULATED_CACHE)

    def total_memory(self) -> int:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return min(physical, _read_cgroup_limit() or physical)

    def free_memory(self) -> int:
        """What the kernel calls available, within the limit of the container."""
        available = _read_meminfo("MemAvailable") or self.total_memory()
        limit = _read_cgroup_limit()
        if limit is None:
            return available
        # File pages that nobody uses count as usage of the container but are given back on demand.
        used = (_read_number(_CGROUP_USAGE) or 0) - (_read_cgroup_stat("inactive_file") or 0)
        return min(available, max(0, limit - used))

    def default_dtype(self) -> torch.dtype:
        return torch.bfloat16

    def synchronize(self) -> None:
        pass

    def create_stream(self) -> None:
        return None

    def use_stream(self, stream: Any) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def create_event(self) -> _DoneEvent:
        return _DoneEvent()


POPULATED_CACHE = 256 * 2**20

# Parameters of mallopt(3) in glibc.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEEP_BLOCKS_UP_TO = 32 * 2**20  # the largest threshold that glibc accepts
_KEEP_FREE_UP_TO = 256 * 2**20


class _DoneEvent:
    """Work on the host is over when it is recorded."""

    def record(self, stream: Any = None) -> None:
        pass

    def wait(self, stream: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


_CGROUP_LIMIT = "/sys/fs/cgroup/memory.max"
_CGROUP_USAGE = "/sys/fs/cgroup/memory.current"


def _read_cgroup_limit() -> int | None:
    return _read_number(_CGROUP_LIMIT)


def _read_cgroup_stat(field: str) -> int | None:
    try:
        with open("/sys/fs/cgroup/memory.stat", encoding="ascii") as file:
            stats = dict(line.split() for line in file)
    except OSError:
        return None
    return int(stats[field]) if field in stats else None


def _read_number(path: str) -> int | None:
    """The integer in a file of the kernel; None when there is no such file or no limit."""
    try:
        with open(path, encoding="ascii") as file:
            text = file.read().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _read_meminfo(field: str) -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
    except OSError:
        return None
    return int(lines[field].split()[0]) * 1024 if field in lines else None
