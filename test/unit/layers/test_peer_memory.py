"""Sums through peer memory in Triton's interpreter, and what happens where there is none."""

from __future__ import annotations

import importlib.util
import logging
from types import SimpleNamespace

import pytest
import torch
from triton_interpreter import output_of, run_cases

from sglang.srt.distributed import GroupCoordinator
from sglang.srt.distributed.device_communicators import peer_memory
from sglang.srt.layers import layernorm
from sglang.srt.layers.layernorm import RMSNorm


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)
def test_sums_in_the_interpreter():
    output = output_of(run_cases("peer_memory_cases.py"))
    assert " passed" in output and "skipped" not in output


class Peers:
    """Peer memory of two ranks whose parts are equal; notes what it is asked for."""

    def __init__(self, takes: bool) -> None:
        self._takes = takes
        self.calls: list[str] = []

    def takes(self, x):
        return self._takes

    def takes_rows(self, x, residual, weight):
        return self._takes

    def all_reduce(self, x):
        self.calls.append("sum")
        return x * 2

    def all_reduce_add_norm(self, x, residual, weight, eps, round_before_weight):
        self.calls.append("norm")
        total = x * 2 + residual
        return layernorm.rms_normalize(total, eps) * weight, total


class Group(GroupCoordinator):
    """Rank 0 of two, without processes."""

    def __init__(self, peers: Peers | None) -> None:
        super().__init__([0, 1], 0, "tp", device_group=SimpleNamespace())
        self.peer_memory = peers


@pytest.fixture
def library(monkeypatch):
    calls: list[torch.Tensor] = []

    def all_reduce(x, group):
        calls.append(x)
        x.mul_(2)

    monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
    return calls


@pytest.mark.parametrize("takes", [True, False, None])
def test_small_sums_go_past_the_library(library, takes):
    peers = None if takes is None else Peers(takes)
    x = torch.ones(2, 3)
    found = Group(peers).all_reduce(x.clone())
    assert torch.equal(found, x * 2)
    assert len(library) == (0 if takes else 1)
    assert peers is None or peers.calls == (["sum"] if takes else [])


@pytest.mark.parametrize("takes", [True, False, None])
@pytest.mark.parametrize("has_residual", [True, False])
def test_norm_sums_ranks_first(library, monkeypatch, takes, has_residual):
    """Whatever way the sum takes, the norm gets it once."""
    peers = None if takes is None else Peers(takes)
    monkeypatch.setattr(layernorm, "get_tp_group", lambda: Group(peers))
    torch.manual_seed(0)
    norm = RMSNorm(8)
    norm.weight.data.copy_(torch.randn(8))
    x = torch.randn(3, 8)
    residual = torch.randn(3, 8) if has_residual else None
    want = norm(x * 2, residual)
    norm.sums_ranks = True
    found = norm(x.clone(), residual)
    torch.testing.assert_close(found, want)
    if takes and has_residual:
        assert peers.calls == ["norm"] and not library
    elif takes:
        assert peers.calls == ["sum"] and not library
    else:
        assert len(library) == 1


class Hosts:
    """A group as the set-up sees it: `against` ranks beside this one have something against a step."""

    world_size, rank_in_group, device_group = 2, 0, None

    def __init__(self, against: list[int]) -> None:
        self._against = iter(against)
        self.asked = 0

    def sum_of_hosts(self, value: int) -> int:
        self.asked += 1
        return value + next(self._against)

    def gather_hosts(self, value: int) -> list[int]:
        return [value, value + 1]


@pytest.fixture
def reachable(monkeypatch):
    monkeypatch.setattr(peer_memory.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda one, other: True)
    monkeypatch.setattr(peer_memory, "_allocate", lambda group, device: torch.zeros(1))


def connect(hosts, caplog):
    with caplog.at_level(logging.INFO):
        found = peer_memory.connect_peer_memory(hosts, torch.device("cuda", 0))
    return found, caplog.text


def test_every_rank_declines_when_one_does(reachable, caplog):
    hosts = Hosts([0, 1])
    found, text = connect(hosts, caplog)
    assert found is None and hosts.asked == 2
    assert "go through the communication library: 1 of 2 ranks cannot" in text


def test_errors_of_the_set_up_are_reasons(reachable, monkeypatch, caplog):
    def fail(group, device, inbox):
        raise RuntimeError("CUDA driver error: invalid device ordinal")

    monkeypatch.setattr(peer_memory, "_map", fail)
    hosts = Hosts([0, 0, 0])
    found, text = connect(hosts, caplog)
    assert found is None and hosts.asked == 3, "the others are told before this rank goes on"
    assert "library: RuntimeError: CUDA driver error: invalid device ordinal" in text


def test_gpus_without_a_link_use_the_library(reachable, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda one, other: False)
    found, text = connect(Hosts([0]), caplog)
    assert found is None and "GPU 0 cannot reach the memory of GPU 1" in text


@pytest.mark.parametrize(("verdict", "is_used"), [(None, True), ("a test found wrong sums", False)])
def test_wrong_sums_are_not_used(reachable, monkeypatch, caplog, verdict, is_used):
    peers = SimpleNamespace(compile=lambda: None, why_wrong=lambda: verdict)
    monkeypatch.setattr(peer_memory, "_map", lambda group, device, inbox: peers)
    found, text = connect(Hosts([0] * 5), caplog)
    assert (found is peers) == is_used
    assert ("through peer memory" in text) == is_used
