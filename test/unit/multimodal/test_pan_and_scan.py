"""Gemma 3 with crops of long and wide pictures, against its own Hugging Face processor."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("PIL")

import media_files
from test_families import build, gemma3, run

from sglang.srt.multimodal.content import digests_of, split_item
from sglang.srt.utils.errors import RequestError

CROPS = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 40}
PLACE = "<start_of_image>"
VIEW_ROWS = 4


@pytest.fixture
def pair(tmp_path):
    """The Hugging Face processor and ours, which cuts."""
    hf, processor, _ = build(gemma3, tmp_path)
    processor.server_args.mm_process_config = {"image": CROPS}
    yield hf, processor
    processor.close()


def expected_of(hf, prompt, pictures, **crops):
    return hf(text=[prompt], images=[pictures], images_kwargs=crops, return_tensors="pt")


@pytest.mark.parametrize(
    "size", [(300, 100), (100, 300), (130, 100), (100, 100), (900, 90), (90, 30)]
)
def test_ids_and_tensors_of_a_picture_with_crops(pair, size):
    hf, processor = pair
    picture = media_files.picture(*size)
    prompt = f"<bos>user\n{PLACE}what?"
    expected = expected_of(hf, prompt, [picture], **CROPS)
    result = run(processor, prompt, image_data=[picture])
    assert result["input_ids"] == expected["input_ids"][0].tolist()
    (item,) = result["mm_items"]
    assert torch.equal(item.feature, expected["pixel_values"])
    assert len(item.offsets) == len(item.feature)
    assert {last - first + 1 for first, last in item.offsets} == {VIEW_ROWS}


def test_sizes_of_crops_are_those_of_the_hugging_face_processor(pair):
    """Without other numbers, and off without the flag."""
    hf, processor = pair
    picture = media_files.picture(1200, 300)
    for given in ({"do_pan_and_scan": True}, {}):
        processor.server_args.mm_process_config = {"image": given}
        expected = expected_of(hf, PLACE, [picture], **given)
        result = run(processor, PLACE, image_data=[picture])
        assert result["input_ids"] == expected["input_ids"][0].tolist()
        assert len(result["mm_items"][0].offsets) == (5 if given else 1)


def test_views_keep_their_digests_beside_other_pictures(pair):
    hf, processor = pair
    pictures = [media_files.picture(300, 100), media_files.picture(50, 50, seed=1)]
    pictures.append(media_files.picture(100, 210, seed=2))
    prompt = f"<bos>{PLACE} and {PLACE}{PLACE}\nwhich?"
    expected = expected_of(hf, prompt, pictures, **CROPS)
    result = run(processor, prompt, image_data=pictures)
    assert result["input_ids"] == expected["input_ids"][0].tolist()
    (item,) = result["mm_items"]
    assert torch.equal(item.feature, expected["pixel_values"])
    assert len(split_item(item)) == len(item.offsets) == 4 + 1 + 3
    (alone,) = run(processor, PLACE, image_data=pictures[:1])["mm_items"]
    assert digests_of(item)[:4] == digests_of(alone)
    assert len(set(digests_of(item))) == 8


def test_a_prompt_that_is_expanded_already_stays(pair):
    _, processor = pair
    picture = media_files.picture(300, 100)
    once = run(processor, f"a{PLACE}b and here", image_data=[picture])["input_ids"]
    assert run(processor, once, image_data=[picture])["input_ids"] == once


@pytest.mark.parametrize("num_crops", [[1], [2, 2], [-1, 2], [0]])
def test_numbers_of_crops_that_do_not_fit_are_refused(pair, num_crops):
    _, processor = pair
    item = {"format": "processor_output", "pixel_values": torch.zeros(3, 3, 28, 28)}
    item["num_crops"] = num_crops
    with pytest.raises(RequestError, match="num_crops"):
        run(processor, PLACE * len(num_crops), image_data=[item])
    item["num_crops"] = [2]
    (found,) = run(processor, PLACE, image_data=[item])["mm_items"]
    assert len(found.offsets) == 3
