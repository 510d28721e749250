"""Media values, pad values in prompts, and the embedding routine."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from sglang.srt.environ import envs
from sglang.srt.managers.mm_utils import (
    MultiModalityDataPaddingPatternMultimodalTokens,
    MultiModalityDataPaddingPatternTokenPairs,
    general_mm_embed_routine,
    hash_feature,
)
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem, MultimodalInputs
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

IMAGE_TOKEN, AUDIO_TOKEN, V, D = 9, 8, 32, 4


def image(feature=None, offsets=None, modality=Modality.IMAGE, **extra) -> MultimodalDataItem:
    item = MultimodalDataItem(modality=modality, feature=feature, offsets=offsets)
    for key, value in extra.items():
        item.set(key, value)
    item.set_pad_value()
    return item


# --- values


def test_modality_names() -> None:
    assert Modality.from_str("Video") is Modality.VIDEO
    assert Modality.all() == [Modality.IMAGE, Modality.VIDEO, Modality.AUDIO]
    with pytest.raises(ValueError, match="'smell'.*allowed: image"):
        Modality.from_str("smell")


def test_item_attributes_live_in_a_dict_and_survive_copies() -> None:
    item = MultimodalDataItem.from_dict(
        {"modality": "image", "image_grid_thw": [1, 2, 2], "hash": 5}
    )
    item["tgt_size"] = 3
    assert (item.image_grid_thw, item.tgt_size, item.hash) == ([1, 2, 2], 3, 5)
    assert item.model_specific_data == {"image_grid_thw": [1, 2, 2], "tgt_size": 3}
    assert copy.deepcopy(item).image_grid_thw == [1, 2, 2]
    assert not hasattr(object.__new__(MultimodalDataItem), "anything")
    with pytest.raises(AttributeError, match="no 'nothing'"):
        item.nothing  # noqa: B018


def test_pad_values_follow_the_content() -> None:
    pixels = torch.arange(6.0)
    first, same = image(pixels), image(pixels.clone())
    assert first.pad_value == same.pad_value >= 1_000_000
    for other in (pixels + 1, pixels.view(2, 3), pixels.double(), [pixels], pixels.bfloat16()):
        assert image(other).pad_value != first.pad_value
    assert hash_feature(np.ones(3)) == hash_feature(torch.ones(3, dtype=torch.float64))
    assert image(hash=7).pad_value == 1_000_007


def test_inputs_from_a_processor_result_and_merge() -> None:
    first, second = image(torch.ones(2)), image(torch.zeros(2), modality=Modality.AUDIO)
    inputs = MultimodalInputs.from_dict(
        {
            "mm_items": [first],
            "im_token_id": 9,
            "input_ids": [1],
            "mrope_positions": torch.ones(3, 2),
        }
    )
    assert inputs.contains_image_inputs() and not inputs.contains_audio_inputs()
    other = MultimodalInputs([second], audio_token_id=8, mrope_positions=torch.zeros(3, 4))
    inputs.merge(other)
    assert inputs.mm_items == [first, second] and inputs.audio_token_id == 8
    assert inputs.im_token_id == 9 and inputs.mrope_positions.shape == (3, 6)


def test_items_merge() -> None:
    one, two = image(torch.ones(1, 2), [(0, 1)]), image(torch.zeros(2, 2), [(4, 5)])
    before = one.pad_value
    one.merge(two)
    assert one.feature.shape == (3, 2) and one.offsets == [(0, 1), (4, 5)]
    assert one.pad_value not in (before, two.pad_value)


# --- pad values in prompts


def test_tokens_are_replaced_by_modality() -> None:
    picture, sound = image(torch.ones(2)), image(torch.ones(3), modality=Modality.AUDIO)
    inputs = MultimodalInputs([picture, sound], im_token_id=IMAGE_TOKEN, audio_token_id=AUDIO_TOKEN)
    pad = MultiModalityDataPaddingPatternMultimodalTokens().pad_input_tokens
    ids = [1, IMAGE_TOKEN, IMAGE_TOKEN, 2, AUDIO_TOKEN]
    assert pad(ids, inputs) == [1, picture.pad_value, picture.pad_value, 2, sound.pad_value]
    assert pad(ids, MultimodalInputs([])) == ids
    with pytest.raises(ValueError, match="im_token_id"):
        pad(ids, MultimodalInputs([picture]))


def test_tokens_are_replaced_by_offsets_when_split() -> None:
    one, two = image(torch.ones(2), [(1, 2)]), image(torch.zeros(2), [(4, 4)])
    inputs = MultimodalInputs([one, two], im_token_id=IMAGE_TOKEN)
    with envs.SGLANG_ENABLE_MM_SPLITTING.override(True):
        padded = MultiModalityDataPaddingPatternMultimodalTokens().pad_input_tokens(
            [1, IMAGE_TOKEN, IMAGE_TOKEN, 2, IMAGE_TOKEN], inputs
        )
    assert padded == [1, one.pad_value, one.pad_value, 2, two.pad_value]


def test_token_pairs() -> None:
    one, two = image(torch.ones(2)), image(torch.zeros(2))
    inputs = MultimodalInputs([one, two])
    # 20..21 starts an image, 22..23 a further slice of it.
    pattern = MultiModalityDataPaddingPatternTokenPairs([(20, 21), (22, 23)], [20])
    ids = [1, 20, 0, 0, 21, 22, 0, 23, 20, 0, 21, 20, 0, 21]
    a, b = one.pad_value, two.pad_value
    expected = [1, 20, a, a, 21, 22, a, 23, 20, b, 21, 20, b, 21]
    assert pattern.pad_input_tokens(ids, inputs) == expected
    assert inputs.data_offsets == [1, 8, 11]
    assert pattern.pad_input_tokens(ids[:-1], inputs) == ids[:-1]


# --- the embedding routine


class Text(torch.nn.Module):
    """A language model that returns what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(V, D)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.table

    def forward(self, input_ids, forward_batch, input_embeds, **kwargs):
        assert input_ids is None
        return input_embeds, kwargs


class Vision(torch.nn.Module):
    """Rows are the feature itself; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def get_image_feature(self, items):
        self.calls.append(len(items))
        return torch.cat([item.feature for item in items])

    def separate_deepstack_embeds(self, rows):
        return rows[:, :D], rows[:, D:]


def batch(prefix: list[int], extend: list[int], mm_inputs, mode=ForwardMode.EXTEND) -> ForwardBatch:
    return ForwardBatch(
        mode,
        batch_size=len(extend),
        extend_prefix_lens_cpu=prefix,
        extend_seq_lens_cpu=extend,
        mm_inputs=mm_inputs,
    )


@torch.no_grad()
def test_media_rows_replace_embeddings() -> None:
    text, vision, feature = Text(), Vision(), torch.randn(3, D)
    item = image(feature, [(1, 2), (4, 4)])
    p = item.pad_value
    ids = torch.tensor([5, 6, 1, p, p, 2, p])
    step = batch([0, 0], [2, 5], [None, MultimodalInputs([item])])
    embeds, kwargs = general_mm_embed_routine(
        ids, step, text, multimodal_model=vision, positions="passed on"
    )
    plain = text.table(torch.tensor([5, 6, 1, 0, 0, 2, 0]))
    assert torch.equal(embeds[[0, 1, 2, 5]], plain[[0, 1, 2, 5]])
    assert torch.equal(embeds[[3, 4, 6]], feature)
    assert kwargs == {"positions": "passed on"}
    assert ids.max() < V and step.mm_inputs is None and torch.equal(step.mm_input_embeds, embeds)


@torch.no_grad()
@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_chunks_take_their_rows(cut: int) -> None:
    text, feature = Text(), torch.randn(3, D)
    item = image(feature, [(1, 2), (4, 4)])
    p = item.pad_value
    ids = [1, p, p, 2, p]
    whole, parts = None, []
    for start, end in ((0, 5), (0, cut), (cut, 5)):
        step = batch([start], [end - start], [MultimodalInputs([item])])
        got, _ = general_mm_embed_routine(torch.tensor(ids[start:end]), step, text, Vision())
        if whole is None:
            whole = got
        else:
            parts.append(got)
    assert torch.equal(torch.cat(parts), whole)


@torch.no_grad()
def test_media_in_the_cached_prefix_are_not_computed() -> None:
    vision = Vision()
    item = image(torch.randn(2, D), [(1, 2)])
    step = batch([3], [2], [MultimodalInputs([item])])
    general_mm_embed_routine(torch.tensor([4, 5]), step, Text(), vision)
    assert vision.calls == []


@torch.no_grad()
def test_decode_and_text_only() -> None:
    text = Text()
    ids = torch.tensor([3])
    item = image(torch.randn(2, D), [(1, 2)])
    for step in (
        batch([], [], [MultimodalInputs([item])], ForwardMode.DECODE),
        batch([0], [1], [None]),
    ):
        embeds, _ = general_mm_embed_routine(ids, step, text, Vision())
        assert torch.equal(embeds, text.table(ids))


@torch.no_grad()
def test_own_functions_precomputed_rows_and_deepstack() -> None:
    text, rows = Text(), torch.randn(1, 2, 2 * D)
    item = image(torch.zeros(1), [(0, 1)])
    p = item.pad_value

    def routine(item, **kwargs):
        step = batch([0], [3], [MultimodalInputs([item])])
        return general_mm_embed_routine(torch.tensor([p, p, 1]), step, text, Vision(), **kwargs)

    embeds, kwargs = routine(
        item,
        data_embedding_funcs={Modality.IMAGE: lambda items: rows},
        use_deepstack={Modality.IMAGE: True},
    )
    assert torch.equal(embeds[:2], rows[0, :, :D])
    assert torch.equal(kwargs["input_deepstack_embeds"][:2], rows[0, :, D:])
    assert not kwargs["input_deepstack_embeds"][2].any()
    item.precomputed_embeddings = rows[0, :, :D]
    embeds, _ = routine(item)
    assert torch.equal(embeds[:2], rows[0, :, :D])


@torch.no_grad()
def test_wrong_number_of_rows(caplog: pytest.LogCaptureFixture) -> None:
    def routine(count: int):
        item = image(torch.arange(float(count * D)).view(count, D), [(0, 1)])
        step = batch([0], [2], [MultimodalInputs([item])])
        return general_mm_embed_routine(torch.tensor([0, 0]), step, Text(), Vision())[0]

    with pytest.raises(RuntimeError, match="2 places.*1 rows"):
        routine(1)
    assert routine(3)[0, 0] == D  # the last two of three
    assert "3 rows for 2 places" in caplog.text


def test_model_without_the_function_is_named() -> None:
    item = image(torch.zeros(1, D), [(0, 0)], modality=Modality.AUDIO)
    step = batch([0], [1], [MultimodalInputs([item])])
    with pytest.raises(ValueError, match="Vision has no get_audio_feature"):
        general_mm_embed_routine(torch.tensor([0]), step, Text(), Vision())
