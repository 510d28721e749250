"""Which cores a rank on a CPU computes on, and with how many threads.

Ranks of one machine that each take every core wait for one another in every product.
"""

from __future__ import annotations

import logging
import os
import re
import sys

import torch

from sglang.srt.environ import envs
from sglang.srt.utils.errors import ConfigError

logger = logging.getLogger(__name__)

_CORES = re.compile(r"(\d+)(?:-(\d+))?", re.ASCII)


def take_share(local_rank: int, num_ranks: int, num_cpus: int) -> None:
    """Settle cores and threads of this process, before its first product.

    SGLANG_CPU_OMP_THREADS_BIND gives each rank its cores; without it the cores are everybody's. OMP_NUM_THREADS, where it is set,
    has the last word about threads; without it a rank has one for each of its cores, or its share of those that torch would take.

    Args:
        local_rank, num_ranks: this rank among those of its machine.
        num_cpus: the rank's share of the cores.

    Raises ConfigError for a variable that does not fit the ranks or the machine.
    """
    threads = max(1, min(torch.get_num_threads() // num_ranks, num_cpus))
    if (text := envs.SGLANG_CPU_OMP_THREADS_BIND.get()) is not None:
        cores = parse_cores(text, num_ranks)[local_rank]
        _bind(cores)
        threads = len(cores)
    if envs.OMP_NUM_THREADS.get() is None and threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    logger.debug("Products of this rank have %d threads", torch.get_num_threads())


def parse_cores(text: str, num_ranks: int) -> list[frozenset[int]]:
    """The cores of every rank in "0-3|4-7" or "0,2|1,3". Raises ConfigError."""
    ranks = [_parse_rank(part) for part in text.split("|")]
    if len(ranks) != num_ranks or not all(ranks):
        raise ConfigError(
            f"SGLANG_CPU_OMP_THREADS_BIND={text!r} must give cores to each rank of this machine ({num_ranks}), ranks separated by |, "
            "cores like 0-3 or 0,2,5-7"
        )
    twice = sorted(core for core in frozenset().union(*ranks) if sum(core in r for r in ranks) > 1)
    if twice:
        raise ConfigError(
            f"SGLANG_CPU_OMP_THREADS_BIND={text!r} gives {'core' if len(twice) == 1 else 'cores'} {', '.join(map(str, twice))} to several "
            "ranks, which would wait for one another in every product; give each core to one rank"
        )
    return ranks


def _parse_rank(part: str) -> frozenset[int]:
    """Empty for a text that gives no cores."""
    cores: set[int] = set()
    for piece in part.split(","):
        if (found := _CORES.fullmatch(piece.strip())) is None:
            return frozenset()
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            return frozenset()
        cores.update(range(first, last + 1))
    return frozenset(cores)


def _bind(cores: frozenset[int]) -> None:
    if sys.platform != "linux":
        raise ConfigError("SGLANG_CPU_OMP_THREADS_BIND works on Linux only; unset it")
    missing = cores - os.sched_getaffinity(0)
    if missing:
        raise ConfigError(
            f"SGLANG_CPU_OMP_THREADS_BIND asks for cores that this process may not use: {sorted(missing)}; "
            f"it may use {sorted(os.sched_getaffinity(0))}"
        )
    os.sched_setaffinity(0, cores)
