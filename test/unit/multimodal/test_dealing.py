"""Media dealt to tensor-parallel ranks: shares, and rows that two processes gather."""

from __future__ import annotations

import pytest
import torch
import torch.multiprocessing as mp

from sglang.srt import distributed
from sglang.srt.models.common import vision_language
from sglang.srt.multimodal import mm_utils
from sglang.srt.multimodal.content import split_item
from sglang.srt.multimodal.dealing import compute_dealt, embed_dealt, shares_of
from sglang.verify.media import require_family
from sglang.verify.media_tiny import write_media_config
from sglang.verify.subject import Subject, SubjectConfig
from sglang.verify.tiny import tiny_config

FAMILIES = {
    "Qwen2_5_VLForConditionalGeneration": ("two images", "get_image_feature"),
    "LlavaNextForConditionalGeneration": ("two images", "get_image_feature"),
    "Gemma3ForConditionalGeneration": ("two images", "get_image_feature"),
    "InternVLForConditionalGeneration": ("two images", "get_image_feature"),
    "Qwen2AudioForConditionalGeneration": ("two images", "get_audio_feature"),
}


@pytest.mark.parametrize(
    ("sizes", "num_ranks", "expected"),
    [
        ([5, 5], 2, [[0], [1]]),
        ([1, 9, 4, 4], 2, [[1], [0, 2, 3]]),
        ([3, 2, 1], 4, [[0], [1], [2], [2]]),
        ([7], 2, [[0], [0]]),
        ([4, 4, 4, 4, 4], 3, [[0, 3], [1, 4], [2]]),
    ],
)
def test_shares(sizes, num_ranks, expected):
    assert shares_of(sizes, num_ranks) == expected


def test_one_rank_computes_all():
    asked = []

    def compute(indices):
        asked.append(indices)
        return torch.ones(len(indices), 2)

    assert compute_dealt(compute, [1, 1, 1]).shape == (3, 2)
    assert asked == [[0, 1, 2]]


def test_a_rank_alone_comes_back():
    before = distributed.get_tp_group()
    with pytest.raises(RuntimeError, match="out"), distributed.each_rank_alone():
        raise RuntimeError("out")
    assert distributed.get_tp_group() is before


def _check_gathered_rows(rank):
    sizes, asked = [2, 5, 1, 3], []

    def compute(indices):
        assert distributed.get_tensor_model_parallel_world_size() == 1
        asked.extend(indices)
        return torch.cat([torch.full((sizes[i], 3), float(i)) for i in indices])

    rows = compute_dealt(compute, sizes)
    assert rows[:, 0].tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 3, 3, 3]
    assert asked == [[1, 2], [0, 3]][rank]
    assert distributed.get_tensor_model_parallel_world_size() == 2
    asked.clear()
    assert len(compute_dealt(compute, sizes[:1])) == 2 and asked == [0]


class _Tower(torch.nn.Module):
    spatial_merge_size = 2

    def forward(self, pixels, grids=None):
        if grids is None:
            return pixels * 2
        assert grids.prod(-1).sum() == len(pixels)
        return pixels.unflatten(0, (-1, 4)).sum(1)


def _check_towers_of_others():
    images = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mm_utils.run_dp_sharded_vision_model(images, _Tower()), images * 2)
    grids = [[1, 2, 2], [1, 4, 4], [2, 2, 4]]
    patches = torch.randn(36, 6, generator=torch.Generator().manual_seed(0))
    rows = mm_utils.run_dp_sharded_mrope_vision_model(_Tower(), patches, grids, rope_type="rope_3d")
    torch.testing.assert_close(rows, patches.unflatten(0, (-1, 4)).sum(1))


def _parts(architecture):
    raw = tiny_config(architecture)
    prompts = require_family(raw["architectures"]).prompts(raw)
    name, method = FAMILIES[architecture]
    prompt = prompts[name]
    items = prompt.inputs_for(prompt.token_ids)["mm_items"]
    return [part for item in items for part in split_item(item)], method


def _rows_of(folder, parts, method, call):
    config = SubjectConfig(enable_multimodal=True)
    model = Subject(str(folder), config).model
    with torch.inference_mode():
        rows = call(getattr(model, method), parts)
    return model, rows.reshape(-1, rows.shape[-1])


def _rank(rank, url, folders, results):
    torch.set_num_threads(1)
    expected = {}
    for name, folder in folders.items():
        parts, method = _parts(name)
        expected[name] = _rows_of(folder, parts, method, lambda function, items: function(items))[1]
    distributed.init_distributed_environment(2, rank, url, backend="gloo", timeout=60)
    distributed.initialize_model_parallel(2)
    _check_gathered_rows(rank)
    _check_towers_of_others()
    vision_language._deals_media = lambda: True
    for name, folder in folders.items():
        parts, method = _parts(name)
        model, rows = _rows_of(folder, parts, method, embed_dealt)
        assert model.deals_media and len(parts) > 1
        torch.testing.assert_close(rows, expected[name], rtol=1e-5, atol=1e-5)
    results[rank] = "done"
    distributed.destroy_model_parallel()
    distributed.destroy_distributed_environment()


def test_two_ranks_make_the_rows_of_one(tmp_path):
    folders = {
        name: str(write_media_config(tiny_config(name), tmp_path / name)) for name in FAMILIES
    }
    context = mp.get_context("fork")
    with context.Manager() as manager:
        results = manager.dict()
        arguments = (f"file://{tmp_path}/meeting", folders, results)
        ranks = [context.Process(target=_rank, args=(r, *arguments)) for r in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(120)
            process.kill()
        assert dict(results) == {0: "done", 1: "done"}
