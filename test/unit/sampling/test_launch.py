"""A launched step waits for nothing: the worker on a device from which nothing can be read.

torch's "meta" device computes shapes alone. Whoever asks a tensor on it for a value gets an error, as does boolean indexing, so that a step
that launches there reads nothing but through `Platform.download`. What goes up must come from pinned memory.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sglang.srt.layers.attention.triton_ops.metadata import find_tiles
from sglang.srt.layers.logits_processor import (
    LogitsMetadata,
    LogitsProcessor,
    LogitsProcessorOutput,
)
from sglang.srt.layers.sampler import Sampler
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead
from sglang.srt.managers.step_plan import RowMedia, RowSetup, RowWork, SamplingSpec, StepPlan
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.model_executor.batch_builder import BatchBuilder
from sglang.srt.model_executor.prefill_graph_runner import PrefillGraphRunner
from sglang.srt.model_executor.worker import TpWorker
from sglang.srt.models.common.tiled_vit import TiledViT
from sglang.srt.models.mllama import MllamaTower
from sglang.srt.models.phi3_small import Phi3SmallLogits
from sglang.srt.multimodal.embedding import embed_mm_inputs
from sglang.srt.multimodal.embedding_cache import EmbeddingCache
from sglang.srt.multimodal.encoder_states import new_encoder_states
from sglang.srt.multimodal.inputs import Modality, MultimodalDataItem, MultimodalInputs
from sglang.srt.multimodal.transport import pack, unpack
from sglang.srt.platforms import CpuPlatform
from sglang.srt.sampling.row_masks import RowMasks
from sglang.verify.media import require_family
from sglang.verify.media_tiny import write_media_config
from sglang.verify.subject import Subject, SubjectConfig
from sglang.verify.tiny import tiny_config

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
    """Refuses copies to the device that would wait for it: from memory that is not pinned, as that of numbers is."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        sent = func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == META
        if func is torch.Tensor.to and not args[0].is_meta:
            sent = META in args[1:] and not (
                isinstance(args[0], Pinned) and "non_blocking" in kwargs
            )
        if func in (torch.Tensor.copy_, torch.Tensor.index_put_, torch.Tensor.__setitem__):
            sent = args[0].is_meta and is_pageable(*args[1:3])
        if sent:
            raise RuntimeError(f"{func.__name__} sends pageable memory to the device")
        return func(*args, **kwargs)


def is_pageable(place, value=None) -> bool:
    """Of what is written (to `place`): a slice takes a number as an argument of its kernel, other places take a copy."""
    if value is None:
        place, value = None, place
    if isinstance(value, torch.Tensor):
        return not value.is_meta and not isinstance(value, Pinned)
    parts = place if isinstance(place, tuple) else (place,)
    return not any(isinstance(part, slice) for part in parts)


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


class FarTower(torch.nn.Module):
    """The part of a tower that is told the shape of a picture."""

    def __init__(self, tower: TiledViT) -> None:
        super().__init__()
        self.tiles_of_ratio, self.rows_per_tile = tower.tiles_of_ratio, tower.rows_per_tile
        self._tower = tower

    def forward(self, pixels, ratio_ids):
        self._tower._visible(ratio_ids, self.rows_per_tile)
        return torch.zeros(1, 2, self.rows_per_tile, WIDTH, device=META)


@pytest.fixture
def pinning(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: Pinned.of(tensor.clone()))


@pytest.fixture
def runner(monkeypatch, pinning):
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


def test_media_of_a_row_go_up_without_waiting(pinning):
    """Positions by time, height and width, the slots of encoder tokens, and who sees these; of a prompt and of its decode."""
    builder = BatchBuilder(ReqToTokenPool(ROWS, 64, META), None, None, META, has_mrope=True)
    inputs = {"mm_items": [], "mrope_positions": torch.arange(PROMPT).repeat(3, 1)}
    media = RowMedia(
        inputs=pack(inputs),
        padded_ids=np.zeros(PROMPT, np.int64).tobytes(),
        encoder_slots=np.arange(9, dtype=np.int32).tobytes(),
        encoder_views=[(1, 0, 9)],
    )
    prompt, later = work(1, PROMPT, prompt=True), work(1, 1, prompt=False)
    beside = work(0, 2, prompt=True)
    with NoPageableUploads():
        first = builder.build(plan("extend", [prompt], SamplingSpec(), media={1: media, 0: None}))
        mixed = builder.build(plan("mixed", [beside, later], SamplingSpec()))
        last = builder.build(plan("decode", [later], SamplingSpec()))
    for batch, count in ((first, PROMPT), (mixed, 3), (last, 1)):
        assert batch.input_ids.is_meta and batch.mrope_positions.shape == (3, count)
        assert batch.encoder_visible.shape == (count,) and batch.encoder_lens.is_meta
    assert first.encoder_out_cache_loc.shape == (9,) and last.encoder_out_cache_loc.shape == (0,)


def test_a_captured_prefill_is_filled_without_waiting(pinning):
    pytest.importorskip("triton")
    from sglang.srt.layers.attention.triton_backend import TritonAttnBackend

    backend = TritonAttnBackend(2, 64, META)
    prefill = PrefillGraphRunner(None, backend, {}, META, has_mrope=True)
    prefill.lay_out(64)
    find_tiles(backend.forward_metadata.extend, 16, True)
    replays: list[int] = []
    graph = SimpleNamespace(replay=lambda: replays.append(64))
    output = LogitsProcessorOutput(torch.empty(8, VOCAB, device=META))
    prefill._captured[64] = SimpleNamespace(graph=graph, output=output)
    builder = BatchBuilder(ReqToTokenPool(ROWS, 64, META), None, None, META, has_mrope=True)
    works = [work(row, PROMPT, prompt=True) for row in (0, 1)]
    batch = builder.build(plan("extend", works, SamplingSpec()))
    assert prefill.can_replay(batch)
    with NoPageableUploads():
        logits = prefill.replay(batch).next_token_logits
    assert replays == [64] and logits.shape == (2, VOCAB)


def test_places_of_media_go_up_without_waiting(pinning):
    """They are sent behind the tower, for which a host that waits would wait too."""
    item = MultimodalDataItem(
        Modality.IMAGE, feature=torch.zeros(3, WIDTH), offsets=[(1, 2), (4, 4)]
    )
    item.set_pad_value()
    tower = SimpleNamespace(get_image_feature=lambda items: torch.zeros(3, WIDTH, device=META))
    ids = torch.zeros(6, dtype=torch.int64, device=META)
    table = torch.nn.Embedding(VOCAB, WIDTH, device=META)
    with torch.no_grad(), NoPageableUploads():
        embeds, _ = embed_mm_inputs([MultimodalInputs([item])], [0], [6], ids, table, tower)
    assert embeds.is_meta and embeds.shape == (6, WIDTH)


def test_shapes_of_tiled_pictures_go_up_without_waiting(pinning):
    """Each picture runs alone: the tower of one is queued before the next one's shape is sent."""
    tower = TiledViT.__new__(TiledViT)
    torch.nn.Module.__init__(tower)
    tower.tiles_of_ratio, tower.max_num_tiles, tower.rows_per_tile = [0, 1, 2], 2, 3
    pictures = MllamaTower.__new__(MllamaTower)
    torch.nn.Module.__init__(pictures)
    pictures.vision_model = FarTower(tower)
    pictures.multi_modal_projector = lambda x: (x, None)
    with NoPageableUploads():
        rows = pictures(torch.zeros(2, 2, 1, device=META), [1, 2])
    assert rows.is_meta and rows.shape == (3 + 6, WIDTH)


@pytest.mark.parametrize(
    "architecture",
    [
        "Qwen2_5_VLForConditionalGeneration",
        "LlavaNextForConditionalGeneration",
        "InternVLForConditionalGeneration",
        "MllamaForConditionalGeneration",
        "Gemma3ForConditionalGeneration",
        "Qwen2AudioForConditionalGeneration",
    ],
)
def test_media_go_up_and_through_their_tower_without_waiting(pinning, tmp_path, architecture):
    """Features, and whatever a tower is told of their shapes."""
    raw = tiny_config(architecture)
    prompt = require_family(raw["architectures"]).prompts(raw)["two images"]
    subject = Subject(str(write_media_config(raw, tmp_path)), SubjectConfig(context_length=256))
    # A copy: models of one process share the tables of their angles.
    model = copy.deepcopy(subject.model).to(META)
    mm_inputs = MultimodalInputs.from_dict(unpack(pack(prompt.inputs_for(prompt.token_ids))))
    ids = torch.tensor(model.pad_input_ids(prompt.token_ids, mm_inputs)).to(META)
    with torch.no_grad(), NoPageableUploads():
        if mm_inputs.num_encoder_tokens:
            batch = SimpleNamespace(
                mm_inputs=[mm_inputs],
                encoder_lens_cpu=[mm_inputs.num_encoder_tokens],
                encoder_cached=[False],
                input_ids=ids,
            )
            found = new_encoder_states(batch, model, EmbeddingCache(0))
        else:
            table = model.get_input_embeddings()
            found, _ = embed_mm_inputs([mm_inputs], [0], [len(ids)], ids, table, model)
    assert found.is_meta and len(found) == (mm_inputs.num_encoder_tokens or len(ids))
    features = [
        f
        for item in mm_inputs.mm_items
        for f in (item.feature if isinstance(item.feature, list) else [item.feature])
    ]
    assert all(feature.device.type == "cpu" for feature in features)


def test_impossible_tokens_are_on_the_device(pinning):
    config = SimpleNamespace(vocab_size=VOCAB, dummy_token_indices=[3, 9])
    with META:
        processor, head = Phi3SmallLogits(config, None), ParallelLMHead(VOCAB, WIDTH)
    with NoPageableUploads():
        logits = processor.compute_logits(torch.zeros(2, WIDTH, device=META), head)
    assert logits.is_meta and logits.shape == (2, VOCAB)


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
        lambda x: x.copy_(torch.zeros(x.shape, device="cpu"), non_blocking=True),
        lambda x: x.__setitem__((x.argmax(0), x.argmax(0)), 1.0),
        lambda x: x.__setitem__((0, 0), 1.0),
        lambda x: x.index_put_((x.argmax(0),), torch.tensor(1.0, device="cpu")),
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
