"""From pictures and sounds to logits: our processor and our model beside transformers' processor parts and transformers' model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")

from PIL import Image

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.managers.multimodal_processor import get_mm_processor, load_all_processors
from sglang.srt.multimodal.hf_processor import load_processor
from sglang.srt.multimodal.transport import pack
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.hf_transformers_utils import get_tokenizer
from sglang.verify.comparison import RELATIVE_BOUND
from sglang.verify.media import MediaReference
from sglang.verify.media_tiny import write_media_config
from sglang.verify.subject import Subject
from sglang.verify.tiny import tiny_config

Features = Callable[[Any, list[Any]], dict[str, torch.Tensor]]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def prompt_of(placeholder: str) -> str:
    return f"see {placeholder} and {placeholder}{placeholder}, which?"


def pictures() -> list[Any]:
    rng = np.random.default_rng(0)
    sizes = ((60, 30), (28, 28), (40, 61))
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), np.uint8)) for w, h in sizes]


def sounds() -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.1, size).astype(np.float32) for size in (16000, 5000, 3210)]


def tiles(parts: Any, images: list[Any]) -> dict[str, torch.Tensor]:
    found = parts.image_processor(images=images, crop_to_patches=True, return_tensors="pt")
    return {"pixel_values": found["pixel_values"]}


def tiles_across(parts: Any, images: list[Any]) -> dict[str, torch.Tensor]:
    """As Llama 3.2's processor, which says too which token sees which picture."""
    from transformers.models.mllama import processing_mllama as processing

    found = parts.image_processor(images=[images], return_tensors="pt")
    token_id = parts.tokenizer.convert_tokens_to_ids("<|image|>")
    ids = [*parts.tokenizer.encode(prompt_of("<|image|>")), 0]  # and an answer
    spans = processing.get_cross_attention_token_mask(ids, token_id)
    num_tiles = found.pop("num_tiles")
    mask = processing.convert_sparse_cross_attention_mask_to_dense(
        [spans], torch.as_tensor(num_tiles).tolist(), 4, len(ids)
    )
    return {**found, "cross_attention_mask": torch.from_numpy(mask)}


def mels(parts: Any, waves: list[Any]) -> dict[str, torch.Tensor]:
    found = parts.feature_extractor(
        waves,
        sampling_rate=16000,
        return_attention_mask=True,
        padding="max_length",
        return_tensors="pt",
    )
    features = {"input_features": found["input_features"]}
    return {**features, "feature_attention_mask": found["attention_mask"]}


CASES = [
    ("InternVLForConditionalGeneration", "<IMG_CONTEXT>", "image_data", pictures, tiles),
    ("InternVLChatModel", "<IMG_CONTEXT>", "image_data", pictures, tiles),
    ("MllamaForConditionalGeneration", "<|image|>", "image_data", pictures, tiles_across),
    ("Qwen2AudioForConditionalGeneration", "<|AUDIO|>", "audio_data", sounds, mels),
]


@pytest.mark.parametrize(
    ("architecture", "placeholder", "kind", "media", "features"),
    CASES,
    ids=[case[0] for case in CASES],
)
def test_media_to_logits(
    architecture: str,
    placeholder: str,
    kind: str,
    media: Callable[[], list[Any]],
    features: Features,
    tmp_path: Path,
) -> None:
    folder = str(write_media_config(tiny_config(architecture), tmp_path))
    tokenizer = get_tokenizer(folder)
    parts = load_processor(folder, tokenizer)
    load_all_processors()
    processor = get_mm_processor(
        ModelConfig(folder).hf_config, ServerArgs(model_path=folder), parts
    )
    prompt = tokenizer.encode(prompt_of(placeholder))
    request = {"image_data": None, "audio_data": None, kind: media()}
    result = asyncio.run(
        processor.process_mm_data_async(
            input_text=prompt, request_obj=SimpleNamespace(video_data=None, rid="r"), **request
        )
    )
    session = Subject(folder).session()
    ids = result["input_ids"]
    session.submit("r", ids, 2, mm_inputs=pack(result))
    session.run()
    trace = session.traces["r"]
    assert trace.finish_reason == "length"
    ours = torch.cat([piece.logits for piece in trace.pieces])
    model = MediaReference(folder).model
    arguments = features(parts, media())
    sequence = torch.tensor([ids + trace.output_ids[:1]])
    with torch.inference_mode():
        theirs = model(input_ids=sequence, use_cache=False, **arguments).logits[0]
    assert len(ours) == len(theirs)
    assert (ours - theirs).abs().max() <= RELATIVE_BOUND * max(1.0, float(theirs.abs().max()))
    processor.close()
