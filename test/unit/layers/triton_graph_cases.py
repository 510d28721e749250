"""The graph runner on a CPU: recorded steps are stood in for by calls, the kernel that fills its buffers runs in Triton's interpreter.

Run by `test_triton_layers.py`, in a process with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.layers.moe.fused_moe_triton import FusedMoE
from sglang.srt.layers.rotary_embedding.factory import get_rope
from sglang.srt.model_executor import cuda_graph_runner, prefill_graph_runner
from sglang.srt.model_executor.cuda_graph_runner import CudaGraphRunner, GraphConfig
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.model_executor.prefill_graph_runner import PrefillGraphRunner

DIM = 16
MROPE = {"rope_type": "default", "mrope_section": [4, 2, 2]}


class Backend:
    """Counts what the runner asks of attention."""

    def __init__(self):
        self.replayed = []

    def get_cuda_graph_seq_len_fill_value(self):
        return 1

    def init_cuda_graph_state(self, max_bs, max_num_tokens):
        pass

    def init_forward_metadata_capture_cuda_graph(self, *args):
        pass

    def init_forward_metadata_replay_cuda_graph(self, size, *args):
        self.replayed.append(size)

    def capture_extend(self, count, rows):
        pass

    def replay_extend(self, count, lens, prefixes):
        self.replayed.append(count)


class Steps:
    """A model of one rotation, and the recorded calls of it."""

    def __init__(self, has_mrope):
        self.rope = get_rope(DIM, DIM, 64, 10000.0, rope_scaling=MROPE if has_mrope else None)
        self.last = None

    def logits(self, batch):
        positions = batch.positions if batch.mrope_positions is None else batch.mrope_positions
        query = torch.ones(len(batch.input_ids), DIM)
        turned, _ = self.rope.forward_native(positions, query, None)
        logits = turned + batch.input_ids[:, None]
        return logits if batch.next_token_positions is None else logits[batch.next_token_positions]

    def forward(self, batch):
        self.last = (batch, self.logits(batch))
        return LogitsProcessorOutput(self.last[1])

    def make_graph(self):
        """In the place of torch.cuda.CUDAGraph: a replay computes anew from the captured tensors, into the captured output."""
        graph = SimpleNamespace(capture_begin=lambda **kwargs: None)

        def capture_end():
            graph.batch, graph.logits = self.last

        graph.capture_end = capture_end
        graph.replay = lambda: graph.logits.copy_(self.logits(graph.batch))
        return graph


@pytest.fixture
def without_a_gpu(monkeypatch):
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "graph_pool_handle": lambda: None,
        "Stream": lambda device: stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": lambda: stream,
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": lambda mode: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return monkeypatch


def decode(size, mrope_positions=None):
    numbers = torch.arange(size)
    return ForwardBatch(
        forward_mode=ForwardMode.DECODE,
        batch_size=size,
        input_ids=numbers + 5,
        req_pool_indices=numbers,
        seq_lens=numbers + 8,
        seq_lens_cpu=numbers + 8,
        seq_lens_sum=int((numbers + 8).sum()),
        out_cache_loc=numbers + 1,
        positions=numbers + 7,
        mrope_positions=mrope_positions,
    )


def make_runner(steps, monkeypatch, has_mrope):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", steps.make_graph)
    platform = SimpleNamespace(device=torch.device("cpu"), free_memory=lambda: 0)
    config = GraphConfig((1, 2, 4), has_mrope=has_mrope)
    return CudaGraphRunner(config, steps.forward, Backend(), {}, platform)


@pytest.mark.parametrize("has_mrope", [False, True])
def test_decode_steps_replay_what_an_eager_step_computes(has_mrope, without_a_gpu):
    steps = Steps(has_mrope)
    runner = make_runner(steps, without_a_gpu, has_mrope)
    generator = torch.Generator().manual_seed(0)
    for size in (3, 1, 4, 2):
        axes = torch.randint(0, 60, (3, size), generator=generator) if has_mrope else None
        batch = decode(size, axes)
        assert runner.can_replay(batch)
        got = runner.replay(batch).next_token_logits
        torch.testing.assert_close(got, steps.logits(batch), rtol=0, atol=0)
    assert runner._backend.replayed == [4, 1, 4, 2]
    assert not runner.can_replay(decode(5, axes))


def test_three_axes_matter():
    """Else the test above would pass with the wrong lines."""
    steps, axes = Steps(has_mrope=True), torch.tensor([[7, 8], [9, 3], [1, 1]])
    for axis in range(3):
        moved = axes.clone()
        moved[axis] += 1
        assert not torch.equal(steps.logits(decode(2, axes)), steps.logits(decode(2, moved)))


@pytest.mark.parametrize("has_mrope", [False, True])
def test_steps_of_the_other_kind_of_positions_are_declined(has_mrope, without_a_gpu):
    runner = make_runner(Steps(has_mrope), without_a_gpu, has_mrope)
    assert not runner.can_replay(decode(2, None if has_mrope else torch.zeros(3, 2).long()))


@pytest.mark.parametrize("has_mrope", [False, True])
def test_short_prefills(has_mrope, without_a_gpu):
    steps, device = Steps(has_mrope), torch.device("cpu")
    without_a_gpu.setattr(torch.cuda, "CUDAGraph", steps.make_graph)
    runner = PrefillGraphRunner(steps.forward, Backend(), {}, device, has_mrope)
    runner.capture(64, None)
    numbers = torch.arange(9)
    batch = ForwardBatch(
        forward_mode=ForwardMode.EXTEND,
        batch_size=2,
        input_ids=numbers + 20,
        req_pool_indices=torch.arange(2),
        out_cache_loc=numbers,
        positions=numbers,
        mrope_positions=(numbers * torch.tensor([[1], [2], [5]])) if has_mrope else None,
        extend_num_tokens=9,
        extend_seq_lens_cpu=[4, 5],
        extend_prefix_lens_cpu=[0, 0],
    )
    assert runner.can_replay(batch)
    got = runner.replay(batch).next_token_logits
    batch.next_token_positions = torch.tensor([3, 8])
    torch.testing.assert_close(got, steps.logits(batch), rtol=0, atol=0)
    batch.mrope_positions = None if has_mrope else torch.zeros(3, 9, dtype=torch.int64)
    assert not runner.can_replay(batch)


@pytest.mark.parametrize("is_ours", [True, False])
def test_kernels_are_compiled_together_before_anything_is_captured(without_a_gpu, is_ours):
    """Triton attends in what is rehearsed: a package's kernels would run, on pages that nobody listed."""
    events, steps = [], Steps(has_mrope=False)

    class Rehearsal:
        @contextlib.contextmanager
        def pretend(self):
            events.append("begin")
            yield
            events.append("end")

        def __len__(self):
            return 3

        def compile(self, device):
            assert device == torch.device("cpu")
            events.append("compile")
            return 0.5

    def forward(batch):
        if "compile" not in events:
            assert batch.attn_backend is small
        events.append(len(batch.input_ids))
        return steps.forward(batch)

    without_a_gpu.setattr(torch.cuda, "CUDAGraph", steps.make_graph)
    without_a_gpu.setattr(cuda_graph_runner, "KernelRehearsal", Rehearsal)
    platform = SimpleNamespace(device=torch.device("cpu"), free_memory=lambda: 0)
    config = GraphConfig((1, 2, 8), rehearse=True)
    small = Backend()
    large = small if is_ours else Backend()
    runner = CudaGraphRunner(
        config, forward, large, {}, platform, small, lambda: events.append("more")
    )
    counts = prefill_graph_runner.TOKEN_COUNTS
    rehearsed = [counts[-1], counts[0], 1, 2, 8, "more"]
    assert events[:9] == ["begin", *rehearsed, "end", "compile"]
    assert events[9:] == [8] * 3 + [2] * 2 + [1] * 2 + [n for n in reversed(counts) for _ in (0, 1)]
    batch = decode(3)
    got = runner.replay(batch).next_token_logits
    torch.testing.assert_close(got, steps.logits(batch), rtol=0, atol=0)


def test_a_rehearsal_that_fails_is_only_a_slower_start(without_a_gpu, caplog):
    steps = Steps(has_mrope=False)
    calls = []

    def forward(batch):
        calls.append(len(batch.input_ids))
        if calls[-1] == 1 == calls.count(1):
            raise AssertionError("not in a rehearsal")
        return steps.forward(batch)

    without_a_gpu.setattr(torch.cuda, "CUDAGraph", steps.make_graph)
    platform = SimpleNamespace(device=torch.device("cpu"), free_memory=lambda: 0)
    small = Backend()
    config = GraphConfig((1, 2), rehearse=True)
    runner = CudaGraphRunner(config, forward, small, {}, platform, small)
    assert "compiled one by one, not together: AssertionError: not in a rehearsal" in caplog.text
    batch = decode(2)
    got = runner.replay(batch).next_token_logits
    torch.testing.assert_close(got, steps.logits(batch), rtol=0, atol=0)


def test_small_decodes_are_triton_s(without_a_gpu):
    """The backend that a captured step was laid out for is the one that its replay prepares."""
    steps, large, small = Steps(has_mrope=False), Backend(), Backend()
    without_a_gpu.setattr(torch.cuda, "CUDAGraph", steps.make_graph)
    platform = SimpleNamespace(device=torch.device("cpu"), free_memory=lambda: 0)
    runner = CudaGraphRunner(GraphConfig((1, 4, 8)), steps.forward, large, {}, platform, small)
    for size in (1, 3, 5, 8):
        batch = decode(size)
        got = runner.replay(batch).next_token_logits
        torch.testing.assert_close(got, steps.logits(batch), rtol=0, atol=0)
    assert (small.replayed, large.replayed) == ([1, 4], [8, 8])
    captured = {size: one.batch.attn_backend for size, one in runner._captured.items()}
    assert captured == {1: small, 4: small, 8: large}


def test_experts_are_rehearsed_in_our_model_files_only():
    """Another's may look something up by the router's choices, which no kernel has written."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    assert cuda_graph_runner.may_rehearse(model)
    experts = FusedMoE.__new__(FusedMoE)
    torch.nn.Module.__init__(experts)
    model.append(experts)
    assert not cuda_graph_runner.may_rehearse(model)
    ours = type("Ours", (torch.nn.Module,), {"__module__": "sglang.srt.models.ours"})()
    ours.experts = experts
    assert cuda_graph_runner.may_rehearse(ours)
