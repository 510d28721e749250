"""Media that are attended to across: which tokens see them, where their keys stand, what is refused."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sglang.srt.arg_groups.resolve import Facts, resolve
from sglang.srt.layers.prompt_logprobs import logprobs_of
from sglang.srt.managers.request_validation import ModelLimits, RequestValidator
from sglang.srt.managers.scheduler_builder import whole_prompts
from sglang.srt.managers.step_plan import RowMedia, RowWork, StepPlan
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.model_executor.batch_builder import BatchBuilder
from sglang.srt.model_executor.encoder_rows import EncoderRows
from sglang.srt.models.mllama import MllamaForConditionalGeneration, views_of
from sglang.srt.multimodal.inputs import Modality, MultimodalDataItem, MultimodalInputs
from sglang.srt.multimodal.transport import pack
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.errors import RequestError


def work(row: int, start: int, ids: list[int] | None, slots: list[int], **more: Any) -> RowWork:
    return RowWork(
        row=row,
        start=start,
        num_tokens=len(slots),
        token_ids=ids,
        prefix_slots=more.get("prefix"),
        new_slots=np.array(slots, np.int32).tobytes(),
        sample=True,
    )


def media(slots: list[int], views: list[tuple[int, int, int]]) -> RowMedia:
    return RowMedia(
        inputs=pack({"mm_items": []}),
        padded_ids=np.zeros(6, np.int64).tobytes(),
        encoder_slots=np.array(slots, np.int32).tobytes(),
        encoder_views=views,
    )


def test_a_token_sees_the_last_pictures_before_it() -> None:
    """As transformers' processor says it, for every layout of up to five pictures in nine tokens."""
    from transformers.models.mllama import processing_mllama as processing

    generator = np.random.default_rng(0)
    for _ in range(200):
        count = int(generator.integers(1, 6))
        places = sorted(generator.choice(9, count, replace=False).tolist())
        tiles = generator.integers(1, 5, count).tolist()
        ids = [7 if i in places else 1 for i in range(9)]
        spans = processing.get_cross_attention_token_mask(ids, 7)
        mask = processing.convert_sparse_cross_attention_mask_to_dense([spans], [tiles], 4, 9)
        expected = mask[0].astype(bool)  # [tokens, pictures, tiles]
        views = views_of(places, [t * 3 for t in tiles])
        for token in range(9):
            (low, high) = next((v[1:] for v in reversed(views) if v[0] <= token), (0, 0))
            ours = [low <= i < high for i in range(sum(tiles) * 3)]
            theirs = [bool(expected[token, p, t]) for p, n in enumerate(tiles) for t in range(n)]
            assert ours == np.repeat(theirs, 3).tolist(), (ids, tiles, token)


def test_steps_of_a_request() -> None:
    rows = EncoderRows(4)
    views = [(2, 0, 3), (4, 3, 5)]
    assert list(rows.update({1: media([9, 8, 7, 6, 5], views), 2: None})) == [1]
    first = rows.step([work(1, 0, [0] * 3, [1, 2, 3]), work(2, 0, [0], [4])])
    assert first is not None
    assert first.lens == [5, 0] and first.cached == [False, True]
    assert first.views == [[(0, 2, 0, 0), (2, 3, 0, 3)], [(0, 1, 0, 0)]]
    assert first.visible.tolist() == [0, 0, 1, 0]
    assert first.new_slots.tolist() == [9, 8, 7, 6, 5]
    second = rows.step([work(1, 3, [0] * 3, [1, 2, 3])])
    assert second is not None and second.cached == [True] and not len(second.new_slots)
    assert second.views == [[(0, 1, 0, 3), (1, 3, 3, 5)]]
    decode = rows.step([work(1, 6, None, [4]), work(2, 1, None, [5])])
    assert decode is not None
    assert decode.views == [[(0, 1, 3, 5)], [(0, 1, 0, 0)]]
    assert rows.step([work(2, 1, None, [5])]) is None, "text alone has no encoder"
    rows.update({1: None})
    assert rows.step([work(1, 0, [0], [4])]) is None and rows.lens.tolist() == [0] * 4


def test_encoder_slots_stand_in_front_of_the_row() -> None:
    pool: Any = ReqToTokenPool(4, 16, "cpu")
    builder = BatchBuilder(pool, None, None, torch.device("cpu"))  # type: ignore[arg-type]
    prefix = np.array([50, 51], np.int32).tobytes()
    works = [work(2, 0, [0], [4]), work(1, 2, [0, 0], [60, 61], prefix=prefix)]
    plan = StepPlan(step_id=1, mode="extend", works=works)
    plan.media = {1: media([9, 8, 7], [(1, 0, 3)]), 2: None}
    batch = builder.build(plan)
    assert pool.req_to_token[1, :8].tolist() == [9, 8, 7, 50, 51, 60, 61, 0]
    assert pool.req_to_token[2, :2].tolist() == [4, 0]
    assert batch.positions.tolist() == [0, 2, 3] and batch.seq_lens.tolist() == [1, 4]
    assert batch.encoder_lens.tolist() == batch.encoder_lens_cpu == [0, 3]
    assert batch.encoder_cached == [True, False]
    assert batch.encoder_out_cache_loc.tolist() == [9, 8, 7]
    assert batch.encoder_visible.tolist() == [False, True, True]
    decode = [work(1, 4, None, [62]), work(2, 1, None, [5])]
    batch = builder.build(StepPlan(step_id=2, mode="decode", works=decode))
    assert pool.req_to_token[1, 7] == 62 and pool.req_to_token[2, 1] == 5
    assert batch.encoder_cached == [True, True] and not len(batch.encoder_out_cache_loc)
    text = builder.build(StepPlan(step_id=3, mode="decode", works=[work(2, 2, None, [6])]))
    assert text.encoder_lens_cpu is None and text.encoder_visible is None


# --- what is refused

TOWER = SimpleNamespace(
    image_size=8, max_num_tiles=4, num_channels=3, tiles_of_ratio=[0, 1, 2, 2], rows_per_tile=5
)


def pad(item: MultimodalDataItem, ids: list[int]) -> MultimodalInputs:
    visual = SimpleNamespace(
        vision_model=TOWER, num_rows=lambda i: TOWER.tiles_of_ratio[i] * TOWER.rows_per_tile
    )
    model: Any = MllamaForConditionalGeneration.__new__(MllamaForConditionalGeneration)
    torch.nn.Module.__init__(model)
    object.__setattr__(model, "visual", visual)
    inputs = MultimodalInputs.from_dict({"mm_items": [item], "im_token_id": 7})
    padded = model.pad_input_ids(ids, inputs)
    assert [i for i, token in enumerate(padded) if token >= 1_000_000] == [
        i for i, token in enumerate(ids) if token == 7
    ]
    return inputs


def pictures(count: int, **more: Any) -> MultimodalDataItem:
    item = MultimodalDataItem(Modality.IMAGE, feature=torch.zeros(count, 4, 3, 8, 8))
    item.offsets = [(2 * i + 1, 2 * i + 1) for i in range(count)]
    item.set("aspect_ratio_ids", torch.arange(count) + 1)
    for key, value in more.items():
        item.set(key, value)
    return item


def test_encoder_tokens_are_those_of_the_tiles() -> None:
    inputs = pad(pictures(2), [1, 7, 1, 7])
    assert inputs.num_encoder_tokens == 15
    assert inputs.encoder_views == [(1, 0, 5), (3, 5, 15)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"feature": torch.zeros(2, 4, 3, 8, 9)}, "pictures of shape"),
        ({"feature": torch.zeros(2, 2, 3, 8, 8)}, "pictures of shape"),
        ({"feature": None, "precomputed_embeddings": torch.zeros(2, 4)}, "pictures of shape"),
        ({"aspect_ratio_ids": torch.tensor([1])}, "aspect_ratio_ids must be 2 numbers"),
        ({"aspect_ratio_ids": torch.tensor([0, 1])}, "from 1 to 3"),
        ({"aspect_ratio_ids": torch.tensor([1, 4])}, "from 1 to 3"),
        ({"aspect_ratio_ids": None}, "need aspect_ratio_ids"),
        ({"offsets": [(1, 2), (3, 3)]}, "2 pictures are given for the places"),
        ({"offsets": [(1, 1)]}, "2 pictures are given for the places"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pad(pictures(2, **changes), [1, 7, 1, 7])


def test_a_client_cannot_say_what_is_seen() -> None:
    inputs = MultimodalInputs.from_dict(
        {"mm_items": [], "num_encoder_tokens": 10**9, "encoder_views": [(0, 0, 10**9)]}
    )
    assert inputs.num_encoder_tokens == 0 and inputs.encoder_views == []


# --- flags, ids and logprobs


def test_prompts_are_not_cut() -> None:
    facts = Facts(device="cpu", device_memory_mib=None, num_cpus=1, random_seed=1)
    resolved = resolve(ServerArgs(model_path="m", chunked_prefill_size=64), facts)
    across: Any = SimpleNamespace(is_encoder_decoder=True)
    other: Any = SimpleNamespace(is_encoder_decoder=False)
    assert whole_prompts(resolved, other) is resolved
    whole = whole_prompts(resolved, across)
    assert resolved.chunked_prefill_size == 64 and whole.chunked_prefill_size == -1
    assert "cross-attention" in whole.decisions[-1]
    assert whole_prompts(whole, across) is whole


def test_tokens_behind_the_vocabulary_may_be_in_a_prompt() -> None:
    limits = ModelLimits.from_info({"context_len": 64, "vocab_size": 10, "num_embeddings": 18})
    RequestValidator(limits, None, False).check_ids([1, 10, 17])
    with pytest.raises(RequestError, match="holds 18"):
        RequestValidator(limits, None, False).check_ids([1, 18])
    with pytest.raises(RequestError, match="holds 10"):
        plain = dataclasses.replace(limits, num_embeddings=None)
        RequestValidator(plain, None, False).check_ids([1, 10])


def test_they_have_no_logprob() -> None:
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, -4.0], [-5.0, -6.0]])
    found = logprobs_of(logprobs, torch.tensor([1, 2, 0]))
    assert found.tolist() == [-2.0, float("-inf"), -5.0]
