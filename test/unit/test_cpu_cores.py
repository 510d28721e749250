"""The cores and threads of a rank on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sglang
from sglang.srt.platforms import cpu_cores
from sglang.srt.platforms.cpu_cores import parse_cores, take_share
from sglang.srt.utils.errors import ConfigError


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many threads torch has: eight, until somebody sets them."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("SGLANG_CPU_OMP_THREADS_BIND", raising=False)
    held = [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: held[-1])
    monkeypatch.setattr(torch, "set_num_threads", held.append)
    return held


@pytest.mark.parametrize(
    ("num_ranks", "num_cpus", "expected"),
    [(1, 8, [8]), (2, 4, [8, 4]), (1, 3, [8, 3]), (2, 8, [8, 4]), (3, 2, [8, 2]), (16, 1, [8, 1])],
)
def test_a_rank_takes_its_share(
    threads: list[int], num_ranks: int, num_cpus: int, expected: list[int]
) -> None:
    take_share(0, num_ranks, num_cpus)
    assert threads == expected


def test_the_user_has_the_last_word(threads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    take_share(0, 4, 2)
    assert threads == [8]


def test_ranks_are_bound_to_their_cores(
    threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: list[frozenset[int]] = []
    monkeypatch.setattr(cpu_cores, "_bind", bound.append)
    monkeypatch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "0-2|4, 6")
    take_share(1, 2, 1)
    assert bound == [frozenset({4, 6})] and threads == [8, 2]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    take_share(0, 2, 1)
    assert bound[1] == frozenset({0, 1, 2}) and threads == [8, 2]


def test_cores_in_words() -> None:
    assert parse_cores("0-2,5|7", 2) == [frozenset({0, 1, 2, 5}), frozenset({7})]


@pytest.mark.parametrize(
    "text", ["all", "0-3", "0|1|2", "0-3|", "0|3-1", "0|1,3-1", "0|1-", "0|-1", "0|1;2"]
)
def test_wrong_cores(text: str) -> None:
    with pytest.raises(ConfigError, match="SGLANG_CPU_OMP_THREADS_BIND.*2"):
        parse_cores(text, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [("0-3|3-5", "gives core 3 to several"), ("0,2|2,0", "gives cores 0, 2 to several")],
)
def test_a_core_of_two_ranks(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"SGLANG_CPU_OMP_THREADS_BIND.*{message}"):
        parse_cores(text, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="cores are bound on Linux only")
def test_a_process_is_bound_and_cannot_leave_its_cores() -> None:
    core = min(os.sched_getaffinity(0))
    program = f"""
import os, torch
from sglang.srt.platforms.cpu_cores import take_share
from sglang.srt.utils.errors import ConfigError
os.environ["SGLANG_CPU_OMP_THREADS_BIND"] = "{core}"
take_share(0, 1, 64)
print(os.sched_getaffinity(0), torch.get_num_threads())
os.environ["SGLANG_CPU_OMP_THREADS_BIND"] = "{core},99999"
try:
    take_share(0, 1, 64)
except ConfigError as error:
    print("99999" in str(error))
"""
    env = {**os.environ, "PYTHONPATH": str(Path(sglang.__file__).parents[1])}
    env.pop("OMP_NUM_THREADS", None)
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"{{{core}}} 1", "True"]
