"""Digests, parts of items, prefix-cache keys, the scheduler's intake, and the embedding cache."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch

from sglang.srt.environ import envs
from sglang.srt.managers.mm_utils import (
    extend_mrope_positions_for_retracted_request,
    get_multimodal_data_bounds,
)
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.multimodal import embedding_cache
from sglang.srt.multimodal.content import cache_keys, digests_of, seal, split_item
from sglang.srt.multimodal.embedding_cache import EmbeddingCache, cache_of
from sglang.srt.multimodal.inputs import Modality, MultimodalDataItem, MultimodalInputs
from sglang.srt.multimodal.intake import MediaIntake, RequestMedia
from sglang.srt.multimodal.padding import MultiModalityDataPaddingPatternMultimodalTokens
from sglang.srt.multimodal.transport import pack

TOKEN = 9


def image(feature, offsets=None, **data) -> MultimodalDataItem:
    return MultimodalDataItem(
        Modality.IMAGE, feature=feature, offsets=offsets, model_specific_data=data
    )


def two(first: float = 1.0, second: float = 2.0) -> MultimodalDataItem:
    """Two pictures of 2 x 2 and 2 x 4 patches in places 1 and 3..4."""
    feature = torch.cat([torch.full((4, 3), first), torch.full((8, 3), second)])
    grids = torch.tensor([[1, 2, 2], [1, 2, 4]])
    return image(feature, [(1, 1), (3, 4)], image_grid_thw=grids, name="shared")


# --- parts


def test_parts_by_grid() -> None:
    one, other = split_item(two())
    assert (one.offsets, other.offsets) == ([(1, 1)], [(3, 4)])
    assert one.feature.tolist() == [[1.0] * 3] * 4 and len(other.feature) == 8
    assert other.image_grid_thw.tolist() == [[1, 2, 4]] and other.name == "shared"


def test_parts_by_entry_and_of_precomputed_rows() -> None:
    parts = split_item(image(torch.arange(2.0).view(2, 1), [(0, 0), (2, 3)]))
    assert [part.feature.tolist() for part in parts] == [[[0.0]], [[1.0]]]
    parts = split_item(image([torch.ones(1), torch.ones(3)], [(0, 0), (2, 3)]))
    assert [len(part.feature[0]) for part in parts] == [1, 3]
    item = image(None, [(0, 0), (2, 3)])
    item.precomputed_embeddings = torch.arange(3.0).view(3, 1)
    assert [len(part.precomputed_embeddings) for part in split_item(item)] == [1, 2]


def test_items_that_cannot_be_cut_stay_whole() -> None:
    for item in (
        image(torch.ones(5), [(0, 0), (2, 3)]),  # neither two entries nor a grid
        image(torch.ones(11, 3), [(1, 1), (3, 4)], image_grid_thw=two().image_grid_thw),
        image(torch.ones(4, 3), [(1, 1)]),
    ):
        assert split_item(item) == [item]
        assert len(digests_of(item)) == len(item.offsets)


# --- digests and keys


def test_digests_see_everything_an_embedding_depends_on() -> None:
    base = digests_of(two())
    assert digests_of(two()) == base and len(set(base)) == 2
    changed = digests_of(two(second=3.0))
    assert changed[0] == base[0] and changed[1] != base[1]
    turned = two()
    turned.model_specific_data["image_grid_thw"] = torch.tensor([[1, 2, 2], [1, 4, 2]])
    assert digests_of(turned)[1] != base[1], "same bytes, another shape"
    ids = [5, TOKEN, 6, TOKEN, TOKEN]
    assert digests_of(image(two().feature[:4], [(1, 1)], image_grid_thw=two().image_grid_thw[:1],
                            name="shared"))[0] == base[0], "alone or with another"  # fmt: skip
    assert cache_keys(ids, [])[1] == TOKEN


def test_keys_of_media_are_negative_and_differ() -> None:
    item = two()
    item.set_pad_value()
    padded = [5, item.pad_value, 6, item.pad_value, item.pad_value]
    keys = cache_keys(padded, [item])
    assert [keys[0], keys[2]] == [5, 6]
    media = [keys[1], keys[3], keys[4]]
    assert all(key < 0 for key in media) and len(set(media)) == 3
    other = two(second=3.0)
    other.hash, other.pad_value = item.hash, item.pad_value
    changed = cache_keys(padded, [other])
    assert changed[:3] == keys[:3] and changed[3] != keys[3] and changed[4] != keys[4]


def test_keys_see_positions() -> None:
    item = two()
    item.set_pad_value()
    padded = [5, item.pad_value, 6, item.pad_value, item.pad_value]
    slow = torch.arange(15).view(3, 5)
    fast = slow.clone()
    fast[0, 4] += 1
    assert cache_keys(padded, [item], slow)[:3] == cache_keys(padded, [item], fast)[:3]
    assert cache_keys(padded, [item], slow)[3:] != cache_keys(padded, [item], fast)[3:]


def test_pad_values_without_places_stand_for_all_media_that_have_them() -> None:
    one, other = image(torch.ones(2)), image(torch.zeros(2))
    for item in (one, other):
        item.hash = 7
        item.set_pad_value()
    padded = [1, one.pad_value, one.pad_value]
    first, second = cache_keys(padded, [one]), cache_keys(padded, [other])
    assert first[0] == second[0] == 1 and first[1] != second[1]
    assert min(first[1:]) < 0 and cache_keys(padded, [one]) == first


def test_without_hashing_media_equal_nothing() -> None:
    with envs.SGLANG_MM_SKIP_COMPUTE_HASH.override(True):
        one, same = two(), two()
        for item in (one, same):
            seal(item)
            item.set_pad_value()
    assert len(set(one.digests or []) | set(same.digests or [])) == 4
    assert one.pad_value != same.pad_value


def test_bounds_between_tokens() -> None:
    ids = torch.tensor([7, 7, 21, 5, 20, 7, 21, 20, 6, 21, 20, 7])
    bounds = get_multimodal_data_bounds(ids, [7], [(20, 21)])
    assert bounds.tolist() == [[0, 1], [5, 5]]
    assert get_multimodal_data_bounds(ids, [], [(20, 21)]).shape == (0, 2)


def test_positions_behind_a_prompt() -> None:
    positions = torch.tensor([[0, 4], [0, 1], [0, 2]])
    longer = extend_mrope_positions_for_retracted_request(positions, 2)
    assert longer.tolist() == [[0, 4, 5, 6], [0, 1, 5, 6], [0, 2, 5, 6]]


# --- intake


def pad(ids: list[int], inputs: MultimodalInputs) -> list[int]:
    return MultiModalityDataPaddingPatternMultimodalTokens().pad_input_tokens(ids, inputs)


def test_intake() -> None:
    ids = [5, TOKEN, 6, TOKEN, TOKEN]
    media = MediaIntake(pad, hidden_size=4).take(
        pack({"mm_items": [two()], "im_token_id": TOKEN}), ids
    )
    assert len(media.keys) == 5 and media.keys[0] == 5 and min(media.keys) < 0
    padded = torch.frombuffer(bytearray(media.sent.padded_ids), dtype=torch.int64).tolist()
    assert [p >= 1_000_000 for p in padded] == [False, True, False, True, True]
    assert media.next_position == 5


def test_a_video_may_reach_further_than_its_prompt() -> None:
    positions = torch.tensor([[0, 40], [0, 1], [0, 1]])
    packed = pack(
        {
            "mm_items": [],
            "mrope_positions": positions,
            "mrope_position_delta": torch.tensor([[39]]),
        }
    )
    assert MediaIntake(pad, hidden_size=4).take(packed, [5, 6]).next_position == 41


def test_intake_refuses_what_does_not_fit() -> None:
    intake = MediaIntake(pad, hidden_size=4)

    def take(item: MultimodalDataItem, **more) -> None:
        intake.take(pack({"mm_items": [item], "im_token_id": TOKEN, **more}), [5, TOKEN, 6])

    for offsets in ([(1, 3)], [(-1, 0)], [(2, 1)], [(1, 1), (1, 2)]):
        with pytest.raises(ValueError, match="not ascending places in a prompt of 3"):
            take(image(torch.ones(2), offsets))
    rows = image(None, [(1, 1)])
    for bad in (torch.ones(2, 4), torch.ones(1, 3), torch.ones(1, 12), torch.ones(1, 4).int()):
        rows.precomputed_embeddings, rows.hash = bad, None
        with pytest.raises(ValueError, match="precomputed embeddings"):
            take(rows)
    rows.precomputed_embeddings = torch.ones(1, 12)
    packed = pack({"mm_items": [rows], "im_token_id": TOKEN})
    MediaIntake(pad, hidden_size=4, num_deep=2).take(packed, [5, TOKEN, 6])
    with pytest.raises(ValueError, match="width 4 or 8 in"):
        MediaIntake(pad, hidden_size=4, num_deep=1).take(packed, [5, TOKEN, 6])
    with pytest.raises(ValueError, match=r"mrope_positions has the shape \[3, 2\]"):
        take(image(torch.ones(2), [(1, 1)]), mrope_positions=torch.zeros(3, 2))
    with pytest.raises(ValueError, match="not be negative"):
        take(image(torch.ones(2), [(1, 1)]), mrope_positions=torch.tensor([[0, -1, 2]] * 3))
    with pytest.raises(ValueError, match="cut off|malformed"):
        intake.take(b"nonsense", [1])
    with pytest.raises(ValueError, match="made 1 ids of 3"):
        MediaIntake(lambda ids, inputs: ids[:1], 4).take(pack({"mm_items": []}), [1, 2, 3])


class Deepstack(torch.nn.Module):
    """A model of which later layers get rows of media, too."""

    def __init__(self, layers: list[int]) -> None:
        super().__init__()
        self.deepstack_visual_indexes = layers

    def pad_input_ids(self, ids: list[int], inputs: MultimodalInputs) -> list[int]:
        return pad(ids, inputs)

    def separate_deepstack_embeds(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rows[:, :4], rows[:, 4:]


@pytest.mark.parametrize(
    ("model", "width"),
    [(SimpleNamespace(pad_input_ids=pad), 4), (Deepstack([]), 4), (Deepstack([1, 5]), 12)],
)
def test_widest_rows_are_those_of_all_layers_that_get_some(model, width: int) -> None:
    config = SimpleNamespace(is_multimodal=True, facts=SimpleNamespace(hidden_size=4))
    intake = ModelRunner.media_intake(SimpleNamespace(model=model, model_config=config))
    rows = image(None, [(1, 1)])

    def take(size: int) -> RequestMedia:
        rows.precomputed_embeddings, rows.hash = torch.ones(1, size), None
        return intake.take(pack({"mm_items": [rows], "im_token_id": TOKEN}), [5, TOKEN, 6])

    assert take(4).next_position == take(width).next_position == 3
    with pytest.raises(ValueError, match=f"{width} in the prompt"):
        take(width + 4)


# --- the embedding cache


def test_least_recently_used_goes_first() -> None:
    cache = EmbeddingCache(3 * 8)
    rows = {key: torch.full((2,), float(key[0])) for key in (b"a", b"b", b"c", b"d")}
    for key in (b"a", b"b", b"c"):
        cache.put(key, rows[key])
    assert cache.get(b"a") is rows[b"a"]
    cache.put(b"d", rows[b"d"])
    assert cache.get(b"b") is None and cache.get(b"a") is not None
    assert (len(cache), cache.num_bytes) == (3, 24)
    cache.put(b"large", torch.ones(7))
    assert cache.get(b"large") is None and len(cache) == 3


def test_a_part_does_not_keep_the_whole_alive() -> None:
    cache, whole = EmbeddingCache(100), torch.arange(1000.0)
    cache.put(b"a", whole[:3])
    found = cache.get(b"a")
    assert found is not None and found.tolist() == [0, 1, 2]
    assert found.untyped_storage().nbytes() == 12


def test_one_cache_per_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_cache, "_limit", [])
    embedding_cache.init_mm_embedding_cache(64)
    model, other = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    cache_of(model).put(b"a", torch.ones(1))
    assert cache_of(model).max_bytes == 64 and len(cache_of(model)) == 1
    assert len(cache_of(other)) == 0
    embedding_cache.clear_mm_embedding_caches()
    assert len(cache_of(model)) == 0
    before = len(embedding_cache._caches)
    del other
    gc.collect()
    assert len(embedding_cache._caches) <= before
