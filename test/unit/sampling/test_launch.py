"""A launched step waits for nothing: the worker on a device from which nothing can be read.

torch's "meta" device computes shapes alone. Whoever asks a tensor on it for a value gets an error, as does boolean indexing, so that a step
that launches there reads nothing but through `Platform.download`. What goes up must come from pinned memory.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sglang.srt.layers.logits_processor import LogitsMetadata, LogitsProcessor
from sglang.srt.layers.sampler import Sampler
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead
from sglang.srt.managers.step_plan import RowSetup, RowWork, SamplingSpec, StepPlan
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.model_executor.batch_builder import BatchBuilder
from sglang.srt.model_executor.worker import TpWorker
from sglang.srt.platforms import CpuPlatform
from sglang.srt.sampling.row_masks import RowMasks

META = torch.device("meta")
VOCAB, WIDTH, ROWS, PROMPT = 70, 8, 4, 6


class FarPlatform(CpuPlatform):
    """Copies nothing; counts what it is asked to bring to the host, and gives zeros for it."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    @property
    def device(self) -> torch.device:
        return META

    def download(self, *tensors):
        assert all(tensor.is_meta for tensor in tensors)
        self.shapes += [tuple(tensor.shape) for tensor in tensors]
        return lambda: tuple(torch.zeros(t.shape, dtype=t.dtype) for t in tensors)


class Pinned(torch.Tensor):
    """A host tensor that may be sent up."""

    @classmethod
    def of(cls, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.as_subclass(cls)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class NoPageableUploads(torch.overrides.TorchFunctionMode):
    """Refuses copies to the device that would wait for it: from memory that is not pinned."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        sent = func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == META
        if func is torch.Tensor.to and not args[0].is_meta:
            sent = META in args[1:] and not (
                isinstance(args[0], Pinned) and "non_blocking" in kwargs
            )
        if sent:
            raise RuntimeError(f"{func.__name__} sends pageable memory to the device")
        return func(*args, **kwargs)


class FarRunner:
    """A model of one head, without attention; what a worker asks of a `ModelRunner`."""

    def __init__(self) -> None:
        self.device, self.platform = META, FarPlatform()
        self.max_running_requests = ROWS
        self.model_config = SimpleNamespace(vocab_size=VOCAB)
        self.builder = BatchBuilder(ReqToTokenPool(ROWS, 64, META), None, None, META)
        with META:
            self._head = ParallelLMHead(VOCAB, WIDTH)
            self._processor = LogitsProcessor(SimpleNamespace(vocab_size=VOCAB))

    def forward(self, batch):
        hidden = torch.empty(len(batch.positions), WIDTH, device=META)
        metadata = LogitsMetadata.from_forward_batch(batch)
        return self._processor(None, hidden, self._head, metadata)


@pytest.fixture
def runner(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: Pinned.of(tensor.clone()))
    # The device has no generators; who draws from one does not read it.
    monkeypatch.setattr(Sampler, "_generator", lambda self, device: None)
    return FarRunner()


def work(row: int, num_tokens: int, *, prompt: bool, **options) -> RowWork:
    options = {"input_logprob_start": 0 if prompt else num_tokens} | options
    return RowWork(
        row=row,
        start=0 if prompt else PROMPT,
        num_tokens=num_tokens,
        token_ids=list(range(num_tokens)) if prompt else None,
        prefix_slots=None if prompt else np.arange(PROMPT, dtype=np.int32).tobytes(),
        new_slots=np.arange(num_tokens, dtype=np.int32).tobytes(),
        sample=True,
        **options,
    )


def plan(mode: str, works: list[RowWork], spec: SamplingSpec, **options) -> StepPlan:
    setups = [
        RowSetup(row=w.row, sampling=spec, prompt_ids=[1, 2, 3], output_ids=[4]) for w in works
    ]
    return StepPlan(step_id=1, mode=mode, works=works, setups=setups, **options)


SPECS = {
    "greedy": SamplingSpec(top_k=1),
    "drawn": SamplingSpec(temperature=0.7),
    "top-k and top-p": SamplingSpec(top_k=5, top_p=0.9),
    "top-p over the vocabulary": SamplingSpec(top_p=0.9),
    "min-p": SamplingSpec(min_p=0.1),
    "seed": SamplingSpec(seed=3, temperature=0.5),
    "penalties": SamplingSpec(
        frequency_penalty=0.5, presence_penalty=0.2, repetition_penalty=1.2, top_k=1
    ),
    "bias": SamplingSpec(logit_bias={5: 1.0, 6: -2.0}, top_k=1),
    "stop ids forbidden": SamplingSpec(min_new_tokens=3, stop_ids=[2, 7]),
}
ASKS = {
    "nothing": {},
    "logprobs": dict(return_logprob=True),
    "alternatives": dict(return_logprob=True, top_logprobs=3),
    "given ids": dict(return_logprob=True, token_ids_logprob=[5, 9]),
    "everything": dict(return_logprob=True, top_logprobs=3, token_ids_logprob=[5, 9]),
}


def launch(runner: FarRunner, *plans: StepPlan) -> list:
    worker = TpWorker(runner, seed=0, check_nan=True)
    with NoPageableUploads():
        return [worker.launch(plan) for plan in plans]


@pytest.mark.parametrize("asked", ASKS)
@pytest.mark.parametrize("spec", SPECS)
def test_launching_reads_nothing(runner, spec, asked):
    """A prompt, a decode of it beside a row that asks for nothing, and both in one step."""
    options, spec = ASKS[asked], SPECS[spec]
    mixed = [work(0, 4, prompt=True, **options), work(2, 1, prompt=False, **options)]
    steps = launch(
        runner,
        plan("extend", [work(0, PROMPT, prompt=True, **options)], spec),
        plan("decode", [work(0, 1, prompt=False, **options), work(1, 1, prompt=False)], spec),
        plan("mixed", mixed, spec),
    )
    prompt, decode, both = (step.result() for step in steps)
    assert len(prompt.next_ids) == 1 and len(both.next_ids) == 2
    if not options:
        assert not (prompt.logprobs or decode.logprobs or both.logprobs)
        return
    row = prompt.logprobs[0]
    assert len(row.input) == PROMPT and row.output == 0.0
    assert [len(ids) for _, ids in row.input_top] == [3] * PROMPT * ("top_logprobs" in options)
    given = "token_ids_logprob" in options
    assert [len(values) for values in row.input_ids] == [2] * PROMPT * given
    assert list(decode.logprobs) == [0] and decode.logprobs[0].input == []
    assert len(both.logprobs[0].input) == 4 and both.logprobs[1].input == []


def test_a_chunk_brings_its_logprobs_without_sampling(runner):
    chunk = work(1, 4, prompt=True, return_logprob=True, next_prompt_token=9)
    chunk.sample = False
    (step,) = launch(runner, plan("extend", [chunk], SamplingSpec()))
    assert runner.platform.shapes == [(4,)]
    result = step.result()
    assert result.next_ids == [-1] and result.logprobs[0].input == [0.0] * 4


def test_grammar_masks_go_up_without_waiting(runner):
    works = [work(row, 1, prompt=False) for row in (0, 1)]
    worker = TpWorker(runner, seed=0, check_nan=True)
    for rows in ([1], [0, 1], [1, 0]):
        masks = RowMasks(rows, np.full((len(rows), -(-VOCAB // 32)), -1, np.int32))
        with NoPageableUploads():
            worker.forward(plan("decode", works, SamplingSpec(top_k=1)))
            before = len(runner.platform.shapes)
            worker.sample(masks)
        # Ids, bad rows and NaN rows, and nothing else.
        assert runner.platform.shapes[before:] == [(2,)] * 3 and before % 3 == 0


def test_a_step_is_read_between_the_parts_of_the_next(runner):
    """As the scheduler does for a grammar. What a forward pass has begun, one sampling ends."""
    worker = TpWorker(runner, seed=0)
    ask = plan("extend", [work(0, PROMPT, prompt=True, return_logprob=True)], SamplingSpec())
    worker.forward(ask)
    assert runner.platform.shapes == [(PROMPT,)], "logprobs of the prompt do not wait for sampling"
    first = worker.sample()
    worker.forward(plan("decode", [work(0, 1, prompt=False)], SamplingSpec()))
    assert first.result().next_ids == [0]
    assert worker.sample().result().next_ids == [0]
    with pytest.raises(AssertionError, match="follows a forward pass"):
        worker.sample()


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.max().item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: bool(x.any()),
        lambda x: torch.tensor([1, 2], device=x.device),
        lambda x: torch.arange(3, device="cpu").to(x.device, non_blocking=True),
    ],
)
def test_what_waits_would_be_noticed(runner, monkeypatch, wait):
    sample = Sampler._sample

    def waiting(self, logits, batch):
        wait(logits)
        return sample(self, logits, batch)

    monkeypatch.setattr(Sampler, "_sample", waiting)
    with pytest.raises((RuntimeError, NotImplementedError)):
        launch(runner, plan("decode", [work(0, 1, prompt=False)], SamplingSpec(top_k=1)))
