"""Qwen2-VL and Qwen2.5-VL: from pictures and a prompt to tensors, places and positions."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")

import media_files
import tiny_processors
from transformers import AutoImageProcessor

from sglang.srt.environ import envs
from sglang.srt.multimodal.inputs import Modality, MultimodalInputs
from sglang.srt.multimodal.media.video import frames_from_images
from sglang.srt.multimodal.processors.qwen_vl import QwenVLImageProcessor
from sglang.srt.multimodal.transport import pack, unpack
from sglang.srt.utils.errors import RequestError

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_processors.qwen_folder(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def processor(folder):
    built = tiny_processors.build(folder, QwenVLImageProcessor)
    yield built
    built.close()


def run(processor, prompt, images=None, videos=None):
    work = processor.process_mm_data_async(
        image_data=images,
        audio_data=None,
        input_text=prompt,
        request_obj=tiny_processors.request(video_data=videos),
        max_req_input_len=512,
    )
    return asyncio.run(work)


def encode(processor, text):
    return processor._processor.tokenizer.encode(text)


def test_pixels_are_those_of_the_image_processor(processor, folder):
    pictures = [media_files.picture(56, 84), media_files.picture(200, 120, seed=1)]
    result = run(processor, f"a{IMAGE}b{IMAGE}c", [media_files.encoded(p) for p in pictures])
    expected = AutoImageProcessor.from_pretrained(folder)(images=pictures, return_tensors="pt")
    (item,) = result["mm_items"]
    assert torch.equal(item.feature, expected["pixel_values"])
    assert torch.equal(item.image_grid_thw, expected["image_grid_thw"])
    assert item.modality is Modality.IMAGE


def test_the_models_own_limit_of_pixels_counts_unless_one_is_set(monkeypatch, tmp_path):
    """Also above the variable's usual value, which is the limit of published models with patches of 14."""
    folder = tiny_processors.qwen_folder(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    settings["size"]["longest_edge"] = 2 * envs.SGLANG_IMAGE_MAX_PIXELS.get()
    path.write_text(json.dumps(settings))
    wide = tiny_processors.build(folder, QwenVLImageProcessor)
    assert wide._options("image") == {}
    monkeypatch.setenv("SGLANG_IMAGE_MAX_PIXELS", str(56 * 56))
    (item,) = run(wide, IMAGE, [media_files.picture(112, 112)])["mm_items"]
    assert item.image_grid_thw.tolist() == [[1, 4, 4]]
    wide.close()


@pytest.mark.parametrize("as_ids", [False, True])
def test_placeholders_become_one_id_per_merged_block(processor, as_ids):
    text = f"a{IMAGE}b{IMAGE}"
    prompt = encode(processor, text) if as_ids else text
    result = run(processor, prompt, [media_files.picture(56, 84), media_files.picture(28, 28)])
    pad = processor.hf_config.image_token_id
    expanded = f"a{IMAGE}b{IMAGE}".replace("<|image_pad|>", "{}").format(
        "<|image_pad|>" * 6, "<|image_pad|>"
    )
    assert result["input_ids"] == encode(processor, expanded)
    (item,) = result["mm_items"]
    assert item.offsets == [(2, 7), (11, 11)] and result["im_token_id"] == pad


def test_prompts_that_are_expanded_already_stay(processor):
    picture = media_files.picture(56, 84)
    once = run(processor, f"a{IMAGE}b", [picture])
    assert run(processor, once["input_ids"], [picture])["input_ids"] == once["input_ids"]


def test_positions_turn_on_three_axes(processor):
    result = run(processor, f"a{IMAGE}bc", [media_files.picture(56, 84)])
    # a, start, six rows of a grid of 3 x 2 from position 2 on, end, b, c
    expected = torch.tensor(
        [
            [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7],
            [0, 1, 2, 2, 3, 3, 4, 4, 5, 6, 7],
            [0, 1, 2, 3, 2, 3, 2, 3, 5, 6, 7],
        ]
    )
    assert torch.equal(result["mrope_positions"], expected)
    assert result["mrope_position_delta"].tolist() == [[8 - 11]]


def test_the_result_survives_the_way_to_the_scheduler(processor):
    result = run(processor, f"a{IMAGE}", [media_files.picture(56, 84)])
    inputs = MultimodalInputs.from_dict(unpack(pack(result)))
    assert torch.equal(inputs.mm_items[0].feature, result["mm_items"][0].feature)
    assert inputs.im_token_id == processor.hf_config.image_token_id


@pytest.mark.parametrize(
    ("prompt", "count"), [("a", 1), (IMAGE, 2), (IMAGE * 2, 1), (VIDEO, 1)], ids=str
)
def test_more_or_fewer_images_than_placeholders_are_refused(processor, prompt, count):
    with pytest.raises(RequestError, match="placeholders for"):
        run(processor, prompt, [media_files.picture(56, 56)] * count)


def test_images_that_the_model_cannot_take_are_refused(processor):
    with pytest.raises(
        RequestError, match=r"cannot take this image input of sizes \[\[2000, 2\]\]"
    ):
        run(processor, IMAGE, [media_files.picture(2000, 2)])
    with pytest.raises(RequestError, match="known format"):
        run(processor, IMAGE, [b"no image"])


def test_an_image_of_one_pixel_has_one_row(processor):
    result = run(processor, IMAGE, [media_files.picture(1, 1)])
    assert result["mm_items"][0].offsets == [(1, 1)]


def test_process_config_bounds_the_pixels(folder):
    small = tiny_processors.build(
        folder, QwenVLImageProcessor, mm_process_config={"image": {"max_pixels": 28 * 28}}
    )
    result = run(small, IMAGE, [media_files.picture(112, 112)])
    assert result["mm_items"][0].image_grid_thw.tolist() == [[1, 2, 2]]
    small.close()


# --- videos


def patches_of(frames):
    """The definition, patch by patch: [t, h / 2, w / 2, 2, 2] x (channel, frame of the pair, row, column)."""
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = ((frames / 255 - mean) / std).astype(np.float32)
    rows = []
    for pair in range(0, len(frames), 2):
        for top in range(0, frames.shape[1], 28):
            for left in range(0, frames.shape[2], 28):
                for y in (top, top + 14):
                    for x in (left, left + 14):
                        patch = pixels[pair : pair + 2, y : y + 14, x : x + 14]
                        rows.append(patch.transpose(3, 0, 1, 2).reshape(-1))
    return np.stack(rows)


def test_video_patches_span_two_frames(processor):
    frames = [media_files.picture(56, 28, seed=i) for i in range(4)]
    result = run(processor, f"x{VIDEO}", videos=[frames_from_images(frames, fps=2)])
    (item,) = result["mm_items"]
    assert item.modality is Modality.VIDEO and item.video_grid_thw.tolist() == [[2, 2, 4]]
    expected = patches_of(np.stack([np.asarray(frame) for frame in frames]))
    np.testing.assert_allclose(item.feature.numpy(), expected, atol=1e-5)
    assert item.offsets == [(2, 5)] and item.second_per_grid_ts.tolist() == [1.0]


def test_an_odd_last_frame_is_repeated(processor):
    frames = [media_files.picture(28, 28, seed=i) for i in range(3)]
    result = run(processor, VIDEO, videos=[frames])
    item = result["mm_items"][0]
    assert item.video_grid_thw.tolist() == [[2, 2, 2]]
    expected = patches_of(np.stack([np.asarray(frames[i]) for i in (0, 1, 2, 2)]))
    np.testing.assert_allclose(item.feature.numpy(), expected, atol=1e-5)


def test_frames_are_sampled_by_time(processor, folder):
    assert len(processor.sample_frames(240, 24.0)) == 20  # two a second
    assert processor.sample_frames(10, 10.0) == [0, 2, 5, 7]  # not fewer than four
    assert processor.sample_frames(1, 24.0) == [0]
    assert len(processor.sample_frames(100_000, 24.0)) == 768
    faster = tiny_processors.build(
        folder, QwenVLImageProcessor, mm_process_config={"video": {"fps": 4, "max_frames": 32}}
    )
    assert len(faster.sample_frames(96, 24.0)) == 16
    assert len(faster.sample_frames(2400, 24.0)) == 32
    faster.close()


def test_video_files_are_decoded(processor):
    pytest.importorskip("av")
    result = run(processor, VIDEO, videos=[media_files.mp4(num_frames=12, fps=4)])
    item = result["mm_items"][0]
    assert item.video_grid_thw[0, 0] == 3 and item.second_per_grid_ts.tolist() == [1.0]


def test_time_advances_by_seconds_in_the_later_model(tmp_path):
    folder = tiny_processors.qwen_folder(tmp_path, "qwen2_5_vl")
    built = tiny_processors.build(folder, QwenVLImageProcessor)
    frames = [media_files.picture(28, 28, seed=i) for i in range(4)]
    result = run(built, VIDEO, videos=[frames_from_images(frames, fps=2)])
    assert result["mrope_positions"][0].tolist() == [0, 1, 3, 4]  # two positions a second
    built.close()


# --- prepared by the client


def test_processor_output_and_embeddings_may_be_given(processor, folder):
    picture = media_files.picture(56, 84)
    output = dict(AutoImageProcessor.from_pretrained(folder)(images=[picture], return_tensors="pt"))
    plain = run(processor, f"a{IMAGE}", [picture])
    result = run(processor, f"a{IMAGE}", [{**output, "format": "processor_output", "hash": 7}])
    assert result["input_ids"] == plain["input_ids"]
    item = result["mm_items"][0]
    assert torch.equal(item.feature, plain["mm_items"][0].feature) and item.hash is None
    rows = torch.randn(6, 32)
    for prompt in (f"a{IMAGE}", plain["input_ids"]):
        embedded = {"format": "precomputed_embedding", "feature": rows.tolist()}
        with pytest.raises(RequestError, match="need image_grid_thw"):
            run(processor, prompt, [embedded])
        embedded["image_grid_thw"] = output["image_grid_thw"].tolist()
        result = run(processor, prompt, [embedded])
        assert result["input_ids"] == plain["input_ids"]
        item = result["mm_items"][0]
        assert torch.allclose(item.precomputed_embeddings, rows) and item.feature is None


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"format": "other"}, "allowed: processor_output"),
        ({"format": "processor_output"}, "holds nothing"),
        ({"format": "precomputed_embedding"}, "array of numbers|matrix"),
        ({"format": "precomputed_embedding", "feature": [[1.0], [2.0, 3.0]]}, "equal rows"),
        ({"format": "precomputed_embedding", "feature": [[float("nan")]]}, "not finite"),
        ({"format": "processor_output", "pixel_values": "words"}, "array of numbers"),
    ],
    ids=str,
)
def test_prepared_media_are_checked(processor, item, message):
    with pytest.raises(RequestError, match=message):
        run(processor, IMAGE, [item])


def test_rows_must_be_as_many_as_places(processor):
    item = {
        "format": "precomputed_embedding",
        "feature": [[1.0, 2.0]],
        "image_grid_thw": [[1, 4, 4]],
    }
    with pytest.raises(RequestError, match="1 precomputed rows were given for 4 places"):
        run(processor, IMAGE, [item])


def test_prepared_and_raw_media_do_not_mix(processor):
    with pytest.raises(RequestError, match="one dict for all"):
        run(processor, IMAGE * 2, [{"format": "processor_output"}, media_files.picture()])
