"""Several tensor-parallel ranks answer prompts with images like one, and find them in the cache again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sglang
from sglang.verify.media_tiny import write_media_config
from sglang.verify.tiny import tiny_config

pytest.importorskip("PIL", reason="the front prepares images with Pillow")

GREEDY = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
RAW = tiny_config("Qwen2_5_VLForConditionalGeneration")


def answers(folder: Path, tp_size: int, **flags: Any) -> list[dict[str, Any]]:
    patches = torch.randn(80, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(1))
    images = {
        "format": "processor_output",
        "pixel_values": patches,
        "image_grid_thw": torch.tensor([[1, 6, 8], [1, 8, 4]]),
    }
    start, pad, end = (RAW[f"{key}_token_id"] for key in ("vision_start", "image", "vision_end"))
    engine = sglang.Engine(
        model_path=str(folder),
        tp_size=tp_size,
        device="cpu",
        dtype="float32",
        max_total_tokens=1024,
        **{"chunked_prefill_size": 16, **flags},
    )
    with engine:
        ids = [5, 6, 7, start, pad, end, 8, start, pad, end, 9]
        found = [
            engine.generate(input_ids=ids, image_data=[images], sampling_params=GREEDY)
            for _ in range(2)
        ]
        return [*found, engine.generate(input_ids=[3, 4, 5], sampling_params=GREEDY)]


def test_ranks_answer_like_one(tmp_path: Path) -> None:
    """Also where every rank has the whole tower and computes one of the images."""
    folder = write_media_config(RAW, tmp_path)
    one, *others = (
        answers(folder, 1),
        answers(folder, 2),
        answers(folder, 2, mm_enable_dp_encoder=True, chunked_prefill_size=64),
    )
    for found in (one, *others):
        assert [answer["output_ids"] for answer in found] == [a["output_ids"] for a in one]
        assert [answer["meta_info"]["cached_tokens"] for answer in found] == [0, 28, 0]
        assert found[0]["meta_info"]["prompt_tokens"] == 29
