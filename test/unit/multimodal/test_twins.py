"""Tiny checkpoints of LLaVAs are as complete as published ones: transformers builds their processor, and it agrees with ours."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("PIL")

import media_files
import transformers
from test_families import pixels_of, run, without_video  # noqa: F401 (a fixture)

from sglang.srt.managers.multimodal_processor import get_mm_processor, load_all_processors
from sglang.srt.multimodal.hf_processor import load_processor
from sglang.srt.server_args import ServerArgs
from sglang.verify.media import require_family
from sglang.verify.tiny import tiny_config, write_tokenizer

NAMES = ("Llava", "LlavaNext", "LlavaOnevision")


@pytest.mark.parametrize("name", NAMES)
def test_processors_of_twins(name, tmp_path, without_video):  # noqa: F811
    raw = tiny_config(f"{name}ForConditionalGeneration")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    write_tokenizer(tmp_path, vocab_size=raw["text_config"]["vocab_size"])
    require_family(raw["architectures"]).write_processor(raw, str(tmp_path))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    images = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    assert settings.pop("processor_class") == f"{name}Processor"
    hf = getattr(transformers, f"{name}Processor")(images, tokenizer, **settings)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    load_all_processors()
    parts = load_processor(str(tmp_path), tokenizer)
    processor = get_mm_processor(config, ServerArgs(model_path=str(tmp_path)), parts)
    for size in ((70, 30), (30, 70), (40, 40)):
        picture = media_files.picture(*size)
        expected = hf(text=["<image> what"], images=[picture], return_tensors="pt")
        result = run(processor, tokenizer.encode("<image> what"), image_data=[picture])
        assert result["input_ids"] == expected["input_ids"][0].tolist()
        assert torch.equal(
            pixels_of(result["mm_items"][0]), torch.as_tensor(expected["pixel_values"])
        )
    processor.close()
