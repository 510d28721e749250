"""Writes the tiny random checkpoints of the cases; how they are drawn is `sglang.verify.tiny`'s."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from models.configs import BASE, CASES, Case

from sglang.verify.tiny import randomise, write_tokenizer


def build_config(name: str, **overrides: Any) -> Any:
    """The transformers config of a case."""
    case = CASES[name]
    config_class = getattr(transformers, case.config_class)
    base = {key: value for key, value in BASE.items() if key not in case.without}
    return config_class(**{**base, **case.keys, **overrides}, architectures=[case.architecture])


def build_model(name: str, **overrides: Any) -> Any:
    """The reference model, float32, eager attention, every parameter seeded by the case's name."""
    case: Case = CASES[name]
    config = build_config(name, **overrides)
    model = getattr(transformers, case.architecture)._from_config(
        config, attn_implementation="eager", dtype=torch.float32
    )
    randomise(model, seed=zlib.crc32(name.encode()))
    return model.eval()


def write_checkpoint(
    name: str,
    folder: Path,
    max_shard_size: str = "5GB",
    with_tokenizer: bool = False,
    **overrides: Any,
) -> Path:
    """Save a case's model in `folder`; returns the folder."""
    model = build_model(name, **overrides)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if with_tokenizer:
        write_tokenizer(folder, vocab_size=model.config.vocab_size)
    return folder
