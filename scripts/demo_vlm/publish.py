"""Write the demo model's folder: weights in bf16, configs, tokenizer, processors, model card."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from card import write_card
from pixels import MAX_PIXELS, MEAN, MERGE, MIN_PIXELS, PATCH, STD, TEMPORAL
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2VLForConditionalGeneration,
)

_STAGES = "training.json"


def publish(
    model: Qwen2VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    scores: dict[str, float],
    per_skill: int,
    stages: list[dict[str, Any]],
    note: str = "",
) -> None:
    """Write the checkpoint to `folder`; files appear by renaming, each complete or not at all.

    stages: how it was trained, one run after the other; note: a paragraph for the card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".demo_vlm") as name:
        staged = Path(name)
        _write_model(model, tokenizer, staged)
        tokenizer.save_pretrained(staged)
        _write_processors(staged)
        _write_json(staged / _STAGES, {"stages": stages})
        write_card(model, staged, scores, per_skill, stages, note)
        # Weights last, so that a reader who finds them finds their config as well.
        for file in sorted(staged.iterdir(), key=lambda f: f.suffix == ".safetensors"):
            file.chmod(0o644)
            os.replace(file, folder / file.name)


def read_stages(folder: Path) -> list[dict[str, Any]]:
    """How the model in `folder` was trained."""
    return json.loads((folder / _STAGES).read_text())["stages"]


def _write_model(
    model: Qwen2VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.3,
        top_p=0.9,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)


def _write_processors(folder: Path) -> None:
    """The settings that make transformers' processors do what `pixels` does."""
    common = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "merge_size": MERGE,
        "patch_size": PATCH,
        "processor_class": "Qwen2VLProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "temporal_patch_size": TEMPORAL,
    }
    size = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    image = {**common, "image_processor_type": "Qwen2VLImageProcessor", "size": size}
    frames = {"min_frames": 2, "max_frames": 16, "fps": 2.0, "do_sample_frames": False}
    video = {**common, **frames, "video_processor_type": "Qwen2VLVideoProcessor", "size": size}
    _write_json(folder / "preprocessor_config.json", image)
    _write_json(folder / "video_preprocessor_config.json", video)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
