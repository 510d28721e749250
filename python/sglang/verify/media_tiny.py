"""Tiny random checkpoints of models that take media, with processor and tokenizer."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch

from sglang.verify.media import require_family
from sglang.verify.media_published import publish, published_names
from sglang.verify.tiny import build_reference, randomise, write_tokenizer


def write_media_config(raw: dict[str, Any], folder: Path) -> Path:
    """A checkpoint of a config.json of a model that transformers has, under whatever name. Raises ConfigError; returns the folder.

    The head gives tokens that stand for media a logit of zero, so that no answer has them: transformers reads media from its own output.
    """
    family = require_family(raw["architectures"])
    names = published_names(raw)
    model = build_reference(raw if names is None else names.config(raw))
    randomise(model, seed=zlib.crc32(raw["architectures"][0].encode()))
    with torch.no_grad():
        model.get_output_embeddings().weight[family.silent_ids(raw)] = 0
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    if names is None:
        path = folder / "config.json"
        written = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**written, "architectures": raw["architectures"]}, indent=2))
    else:
        publish(folder, raw, names)
    write_tokenizer(folder, vocab_size=model.config.get_text_config().vocab_size)
    family.write_processor(raw, str(folder))
    return folder
