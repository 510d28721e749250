"""A model that attends to pictures across, served: on one rank and on two, whole pages, several samples, and what is left of the pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sglang
from sglang.srt.utils.errors import RequestError
from sglang.verify.media_tiny import write_media_config
from sglang.verify.tiny import tiny_config

pytest.importorskip("PIL", reason="the front prepares images with Pillow")

GREEDY = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
RAW = tiny_config("MllamaForConditionalGeneration")
IMAGE = RAW["image_token_index"]


def pictures(*ratio_ids: int) -> dict[str, Any]:
    """What transformers' processor returns for one prompt."""
    generator = torch.Generator().manual_seed(sum(ratio_ids))
    return {
        "format": "processor_output",
        "pixel_values": torch.randn(1, len(ratio_ids), 4, 3, 28, 28, generator=generator),
        "aspect_ratio_ids": torch.tensor([ratio_ids]),
    }


def answers(folder: Path, **flags: Any) -> list[dict[str, Any]]:
    engine = sglang.Engine(
        model_path=str(folder),
        device="cpu",
        dtype="float32",
        max_total_tokens=512,
        chunked_prefill_size=16,
        **flags,
    )
    with engine:

        def ask(ids: list[int], media: Any = None, **params: Any) -> list[dict[str, Any]]:
            found = engine.generate(
                input_ids=ids, image_data=media, sampling_params={**GREEDY, **params}
            )
            return found if isinstance(found, list) else [found]

        two = [pictures(2, 7)]
        found = ask([5, 6, 7, IMAGE, 8, IMAGE, *range(40, 60)], two)
        found += ask([5, 6, 7, IMAGE, 8, IMAGE, *range(40, 60)], two, n=3)
        found += ask([IMAGE, IMAGE, 9], [pictures(1, 4)]) + ask([5, 6, 7])
        with pytest.raises(RequestError, match="from 1 to 8"):
            ask([5, IMAGE], [pictures(9)])
        with pytest.raises(RequestError, match="precomputed|pictures of shape"):
            rows = {"format": "precomputed_embedding", "feature": torch.zeros(1, 64)}
            ask([5, IMAGE], [rows])
        assert engine.flush_cache()
        return found


def test_one_rank_and_two_answer_alike(tmp_path: Path) -> None:
    folder = write_media_config(RAW, tmp_path)
    one = answers(folder)
    others = [
        answers(folder, page_size=16, disable_overlap_schedule=True),
        answers(folder, tp_size=2, mm_enable_dp_encoder=True, disable_radix_cache=True),
    ]
    ids = [answer["output_ids"] for answer in one]
    assert ids[0] == ids[1] == ids[2] == ids[3] and len({tuple(x) for x in ids}) == 3
    assert one[1]["meta_info"]["cached_tokens"] == 25
    for found in others:
        assert [answer["output_ids"] for answer in found] == ids
    assert [found[1]["meta_info"]["cached_tokens"] for found in others] == [16, 0]
