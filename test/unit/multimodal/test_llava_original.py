"""LLaVA as its authors publish it: what config.json amounts to, pictures, and a tower that is published elsewhere."""

from __future__ import annotations

import asyncio
import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("PIL")

import media_files
import tiny_processors
import transformers

from sglang.srt.configs.llava import as_transformers
from sglang.srt.multimodal.hf_processor import load_processor
from sglang.srt.multimodal.media.limits import MediaLimits
from sglang.srt.multimodal.media.sources import SourcePolicy
from sglang.srt.multimodal.processors.llava_original import LlavaOriginalImageProcessor
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.errors import ConfigError, RequestError
from sglang.srt.utils.hf_transformers_utils import get_config, get_tokenizer
from sglang.verify.media import MediaProof, require_family
from sglang.verify.media_forms import media_forms
from sglang.verify.media_tiny import write_media_config
from sglang.verify.tiny import tiny_config

TOWER = "model.vision_tower.vision_tower."


def converted(name: str, **changes: Any) -> dict[str, Any]:
    raw = {**tiny_config(name), **changes}
    return as_transformers(raw, raw["vision_config"])


def test_the_aspect_ratio_says_which_class_it_is() -> None:
    assert converted("llava_llama")["model_type"] == "llava"
    assert converted("llava_mistral")["model_type"] == "llava_next"
    assert converted("llava_qwen")["model_type"] == "llava_onevision"
    assert converted("llava_qwen")["text_config"]["model_type"] == "qwen2"
    # CLIP has a row for the whole picture, SigLIP has none.
    assert converted("llava_llama")["vision_feature_select_strategy"] == "default"
    assert converted("llava_qwen")["vision_feature_select_strategy"] == "full"
    whole = converted("llava_llama", mm_vision_select_feature="cls_patch")
    assert whole["vision_feature_select_strategy"] == "full"


@pytest.mark.parametrize(
    ("written", "sizes"),
    [
        ([[28, 56], [84, 28]], [[56, 28], [28, 84]]),
        ("[(28, 56), (84, 28)]", [[56, 28], [28, 84]]),
        ("(1x1),...,(2x3)", [[28, 28], [56, 28], [84, 28], [28, 56], [56, 56], [84, 56]]),
    ],
)
def test_canvases_are_turned(written: Any, sizes: list[list[int]]) -> None:
    """Published as width and height, transformers has height and width."""
    found = converted("llava_mistral", image_grid_pinpoints=written)
    assert found["image_grid_pinpoints"] == sizes


@pytest.mark.parametrize(
    "changes",
    [
        {"mm_projector_type": "linear"},
        {"mm_patch_merge_type": "flat"},
        {"image_aspect_ratio": "highres"},
        {"image_grid_pinpoints": None},
    ],
)
def test_other_mathematics_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        converted("llava_mistral", **changes)


def test_published_towers_are_read(tmp_path: Path) -> None:
    """The config of a whole CLIP, as the tower's repository has it."""
    raw = {k: v for k, v in tiny_config("llava_llama").items() if k != "vision_config"}
    vision = tiny_config("llava_llama")["vision_config"]
    (tmp_path / "vision_tower").mkdir()
    clip = {"model_type": "clip", "vision_config": {**vision, "model_type": "clip_vision_model"}}
    (tmp_path / "vision_tower" / "config.json").write_text(json.dumps(clip))
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = get_config(str(tmp_path))
    assert config.vision_config.hidden_size == vision["hidden_size"]
    assert config.text_config.num_hidden_layers == raw["num_hidden_layers"]


def build(name: str, folder: Path) -> Any:
    write_media_config(copy.deepcopy(tiny_config(name)), folder)
    config = get_config(str(folder))
    parts = load_processor(str(folder), get_tokenizer(str(folder)))
    return LlavaOriginalImageProcessor(config, ServerArgs(model_path=str(folder)), parts)


def run(processor: Any, prompt: str, pictures: list[Any]) -> dict[str, Any]:
    return asyncio.run(
        processor.process_mm_data_async(
            image_data=pictures,
            audio_data=None,
            input_text=prompt,
            request_obj=tiny_processors.request(),
        )
    )


def test_padded_squares(tmp_path: Path) -> None:
    processor = build("llava_llama", tmp_path)
    side = processor.hf_config.vision_config.image_size
    own = processor._processor.image_processor
    picture = media_files.picture(60, 30)
    result = run(processor, "<image>x", [picture])
    (item,) = result["mm_items"]
    twin = transformers.LlavaImageProcessorPil(
        do_pad=True,
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=own.image_mean,
        image_std=own.image_std,
    )
    expected = twin(images=[picture], return_tensors="pt")["pixel_values"]
    assert torch.equal(item.feature, expected)
    assert item.offsets == [(0, 15)]
    processor.close()


def test_a_long_picture_becomes_no_large_square(tmp_path: Path) -> None:
    """It is padded before it is scaled: 65,536 x 1 pixels become 12 GiB."""
    processor = build("llava_llama", tmp_path)
    processor.source_policy = SourcePolicy(MediaLimits(max_pixels=100 * 100))
    with pytest.raises(RequestError, match="would make 101 x 101 of it"):
        run(processor, "<image>x", [media_files.picture(101, 50)])
    assert run(processor, "<image>x", [media_files.picture(100, 50)])["mm_items"]
    processor.close()


def test_tiles_and_several_pictures(tmp_path: Path) -> None:
    processor = build("llava_qwen", tmp_path)
    single = run(processor, "<image>", [media_files.picture(60, 30)])
    (item,) = single["mm_items"]
    assert [len(picture) for picture in item.feature] == [3]  # the whole, and two tiles
    both = run(
        processor, "<image><image>", [media_files.picture(60, 30), media_files.picture(9, 9)]
    )
    (item,) = both["mm_items"]
    assert [len(picture) for picture in item.feature] == [1, 1]
    assert item.offsets == [(0, 4), (5, 9)]
    processor.close()


def test_a_tokenizer_without_the_token_is_refused(tmp_path: Path) -> None:
    write_media_config(copy.deepcopy(tiny_config("llava_llama")), tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace("<image>", "<other>"))
    parts = load_processor(str(tmp_path), get_tokenizer(str(tmp_path)))
    with pytest.raises(ConfigError, match="--tokenizer-path"):
        LlavaOriginalImageProcessor(
            get_config(str(tmp_path)), ServerArgs(model_path=str(tmp_path)), parts
        )


def test_a_tower_that_is_published_elsewhere(tmp_path: Path) -> None:
    """Checkpoints whose tower was not trained have none: its own files are read."""
    raw = copy.deepcopy(tiny_config("llava_llama"))
    write_media_config(raw, tmp_path)
    proof = MediaProof(str(tmp_path), require_family(raw["architectures"]), raw)
    assert proof.reference is not None  # read while the checkpoint is whole
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tower = {k.removeprefix(TOWER): v for k, v in tensors.items() if k.startswith(TOWER)}
    save_file({k: v for k, v in tensors.items() if not k.startswith(TOWER)}, path)
    tower["text_model.final_layer_norm.weight"] = torch.ones(1)  # the rest of CLIP
    save_file(tower, tmp_path / "vision_tower" / "model.safetensors")
    form = next(f for f in media_forms(proof.media) if f.name == "media: one by one, page 1")
    result = proof.run(form)
    assert result.passed, result.detail
