"""`HFRunner` and `SRTRunner` on prompts with images: the same numbers, for a random model that sees."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("PIL")

from sglang.srt.utils.errors import ConfigError
from sglang.test.media_files import draw
from sglang.test.model_output import check_close_model_outputs
from sglang.test.runners import HFRunner, SRTRunner
from sglang.test.tiny_vlm import write_vlm_twin
from sglang.verify.tiny import write_tiny

PLACE = "<|vision_start|><|image_pad|><|vision_end|>"
PROMPTS = [f"{PLACE} what is it?", "no picture", f"{PLACE} or {PLACE}?"]


def test_both_see_the_same(tmp_path: Path) -> None:
    folder = write_vlm_twin(tmp_path / "model")
    first, second = draw("circle", "red"), draw("square", "blue")
    second.save(tmp_path / "second.png")
    images = [first, None, [first, str(tmp_path / "second.png")]]
    ids = [7, 9]
    with HFRunner(folder, torch.float32) as hf:
        theirs = hf.forward(PROMPTS, images, max_new_tokens=6, token_ids_logprob=ids)
        blind = hf.forward([f"{PLACE} what is it?"], [second], max_new_tokens=6)
        with pytest.raises(ValueError, match="2 entries for 3 prompts"):
            hf.forward(PROMPTS, images[:2])
    flags = {"max_total_tokens": 2048, "device": "cpu", "mem_fraction_static": 0.5}
    with SRTRunner(folder, torch.float32, **flags) as srt:
        ours = srt.forward(PROMPTS, images, max_new_tokens=6, token_ids_logprob=ids)
        batch = srt.batch_forward(PROMPTS, images, max_new_tokens=6)
    check_close_model_outputs(theirs, ours, 2e-3, 2e-3, 1.0)
    assert batch.output_ids == ours.output_ids
    for one, other in zip(
        theirs.token_ids_input_logprobs, ours.token_ids_input_logprobs, strict=True
    ):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=0, atol=2e-3)
    # It would prove nothing if the picture did not matter.
    assert (
        max(
            abs(a - b)
            for a, b in zip(
                blind.top_input_logprobs[0][-1], theirs.top_input_logprobs[0][-1], strict=True
            )
        )
        > 1e-2
    )


def test_images_for_a_model_of_text_are_refused(tmp_path: Path) -> None:
    folder = write_tiny("LlamaForCausalLM", tmp_path / "model")
    with (
        HFRunner(str(folder), torch.float32) as hf,
        pytest.raises(RuntimeError, match="takes no images"),
    ):
        hf.forward(["a"], [draw("circle", "red")])
    with pytest.raises(ConfigError, match="lora_paths"):
        SRTRunner.forward(object.__new__(SRTRunner), ["a"], lora_paths=["x"])
