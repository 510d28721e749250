"""What several ranks decide together, and models whose sums are left to norms: two processes, and layers looked at in one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
from models.tiny import build_config

from sglang.srt import distributed
from sglang.srt.distributed.agreement import all_can, do_alike
from sglang.srt.distributed.group import GroupCoordinator
from sglang.srt.managers.step_plan import RowWork, StepPlan
from sglang.srt.model_executor import graph_capture, parallel_worker, rank_sums
from sglang.srt.model_executor.graph_capture import check_alike
from sglang.srt.model_executor.parallel_worker import sampled_rows
from sglang.srt.model_executor.worker import TpWorker
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.llama import LlamaDecoderLayer, LlamaForCausalLM
from sglang.srt.utils.errors import ConfigError


def _fail() -> None:
    raise RuntimeError("cannot be captured")


def _agree(rank: int, url: str, results) -> None:
    distributed.init_distributed_environment(2, rank, url, backend="gloo", timeout=60)
    distributed.initialize_model_parallel(2)
    group = distributed.get_tp_group()
    assert do_alike(group, "capturing", lambda: rank) == rank
    with pytest.raises(RuntimeError, match="cannot be captured"):
        do_alike(group, "capturing", _fail)
    words = "capturing failed on 1 of 2 ranks" + ("" if rank == 0 else ": RuntimeError: cannot")
    with pytest.raises(ConfigError, match=words):
        do_alike(group, "capturing", _fail if rank == 1 else lambda: None)
    assert all_can(group, None) is None
    reason = all_can(group, "no triton" if rank == 1 else None)
    assert reason == ("no triton" if rank == 1 else "1 of 2 ranks cannot")
    assert group.gather_hosts(rank + 5) == [5, 6] and group.sum_of_hosts(rank + 5) == 11
    check_alike("sizes", (1, 2))
    with pytest.raises(ConfigError, match="the ranks differ in sizes"):
        check_alike("sizes", (1, 2 + rank))
    results[rank] = "done"
    distributed.destroy_distributed_environment()


def test_two_ranks_agree(tmp_path):
    context = mp.get_context("fork")
    with context.Manager() as manager:
        results = manager.dict()
        url = f"file://{tmp_path}/rendezvous"
        ranks = [context.Process(target=_agree, args=(r, url, results)) for r in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(60)
        assert dict(results) == {0: "done", 1: "done"}


def test_one_rank_asks_nobody():
    group = GroupCoordinator([0], 0, "tp")
    assert do_alike(group, "capturing", lambda: 3) == 3
    with pytest.raises(RuntimeError, match="cannot be captured"):
        do_alike(group, "capturing", _fail)
    assert all_can(group, "no triton") == "no triton" and all_can(group, None) is None
    check_alike("sizes", (1,))


class Graph:
    """What the capture of a graph is asked to do, in order."""

    log: list[str] = []

    def capture_begin(self, pool, capture_error_mode):
        self.log.append(f"begin {capture_error_mode}")

    def capture_end(self):
        self.log.append("end")


@pytest.fixture
def captures(monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: Graph.log.append("synchronize"))
    monkeypatch.setattr(Graph, "log", [])
    return Graph.log


class Hosts:
    """A group of two of which the other rank fails in some steps."""

    world_size = 2

    def __init__(self, failures: list[int]) -> None:
        self._failures = iter(failures)

    def sum_of_hosts(self, value: int) -> int:
        return value + next(self._failures)


def capture(monkeypatch, log: list[str], failures: list[int]):
    monkeypatch.setattr(graph_capture, "get_tp_group", lambda: Hosts(failures))
    return graph_capture.capture_graph(
        "capturing", None, lambda: log.append("warm up"), lambda: log.append("forward") or 7
    )


def test_capture_follows_a_run_on_all_ranks(captures, monkeypatch):
    graph, output = capture(monkeypatch, captures, [0, 0])
    assert isinstance(graph, Graph) and output == 7
    assert captures == ["warm up", "synchronize", "begin thread_local", "forward", "end"]


@pytest.mark.parametrize("failures", [[1], [0, 1]])
def test_no_rank_goes_on_where_another_failed(captures, monkeypatch, failures):
    with pytest.raises(ConfigError, match="failed on 1 of 2 ranks; see their logs"):
        capture(monkeypatch, captures, failures)
    assert ("forward" in captures) == (len(failures) == 2)


@pytest.fixture
def two_ranks(monkeypatch):
    """Layers that are made believe that they are rank 0 of two."""
    group = GroupCoordinator([0, 1], 0, "tp", device_group=object())
    monkeypatch.setitem(distributed.parallel_state._groups, "tp", group)


def tiny_llama(layer_cls=None, **overrides) -> LlamaForCausalLM:
    config = build_config("llama", num_hidden_layers=3, **overrides)
    if layer_cls is None:
        return LlamaForCausalLM(config)

    class Model(LlamaForCausalLM.model_cls):
        pass

    Model.layer_cls = layer_cls

    class Causal(LlamaForCausalLM):
        model_cls = Model

    return Causal(config)


def test_sums_of_plain_layers_are_left_to_norms(two_ranks):
    model = tiny_llama()
    assert rank_sums.leave_sums_to_norms(model) == 6
    first, *later = model.model.layers
    assert not first.input_layernorm.sums_ranks, "the embedding is whole"
    norms = [first.post_attention_layernorm, model.model.norm]
    norms += [norm for x in later for norm in (x.input_layernorm, x.post_attention_layernorm)]
    assert all(norm.sums_ranks for norm in norms)
    for layer in model.model.layers:
        assert not layer.self_attn.o_proj.reduce_results and not layer.mlp.down_proj.reduce_results
    assert rank_sums.leave_sums_to_norms(model) == 0, "once is enough"


class OtherForward(LlamaDecoderLayer):
    def forward(self, positions, hidden_states, forward_batch, residual):
        return super().forward(positions, hidden_states, forward_batch, residual)


class GatedAttention(GQAttention):
    def forward(self, positions, hidden_states, forward_batch):
        return super().forward(positions, hidden_states, forward_batch) * 0.5


class ScaledMLP(GatedMLP):
    def forward(self, x):
        return super().forward(x) * 2


def test_a_forward_of_ones_own_is_left_alone(two_ranks):
    assert rank_sums.leave_sums_to_norms(tiny_llama(OtherForward)) == 0
    model = tiny_llama()
    model.model.layers[1].self_attn.__class__ = GatedAttention
    model.model.layers[2].mlp.__class__ = ScaledMLP
    model.model.layers[0].__class__ = OtherForward
    assert rank_sums.leave_sums_to_norms(model) == 2
    assert model.model.layers[1].self_attn.o_proj.reduce_results
    assert not model.model.layers[1].mlp.down_proj.reduce_results
    assert model.model.layers[2].mlp.down_proj.reduce_results
    assert not model.model.norm.sums_ranks and not model.model.layers[1].input_layernorm.sums_ranks


def test_one_rank_has_nothing_to_sum():
    model = tiny_llama()
    assert rank_sums.leave_sums_to_norms(model) == 0
    assert model.model.layers[0].self_attn.o_proj.reduce_results


class Recorder:
    """A runner, worker or channel that notes what is called."""

    def __init__(self, log: list[str], **parts) -> None:
        self.__dict__.update(parts)
        self._log = log

    def __getattr__(self, name: str):
        return lambda *args: self._log.append(name)


def test_graphs_go_before_the_group_ends(monkeypatch):
    """The communication library waits for graphs that hold its collectives."""
    log: list[str] = []
    monkeypatch.setattr(
        parallel_worker, "destroy_distributed_environment", lambda: log.append("leave")
    )
    runner = Recorder(log, builder=None)
    parallel_worker.FollowerWorker(runner).close()
    assert log == ["release_graphs", "leave"]
    log.clear()
    worker = TpWorker.__new__(TpWorker)
    worker._runner = runner
    channel = SimpleNamespace(close=lambda: log.append("goodbye"))
    parallel_worker.LeaderWorker(worker, channel).close()
    assert log == ["goodbye", "release_graphs", "leave"]


@pytest.mark.parametrize("samples", [[True, True], [False, True], [False, False]])
def test_rows_that_sample(samples):
    works = [
        RowWork(
            row=5 + i,
            start=0,
            num_tokens=1,
            token_ids=None,
            prefix_slots=None,
            new_slots=b"",
            sample=sample,
        )
        for i, sample in enumerate(samples)
    ]
    plan = StepPlan(step_id=1, mode="decode", works=works)
    rows = sampled_rows(plan, torch.tensor([5, 6]))
    assert rows.tolist() == [5 + i for i, sample in enumerate(samples) if sample]
