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

from sglang.verify.tiny import build_reference, randomise, write_config, write_tokenizer


def build_config(name: str, **overrides: Any) -> Any:
    """The transformers config of a case."""
    case = CASES[name]
    config_class = getattr(transformers, case.config_class)
    base = {key: value for key, value in BASE.items() if key not in case.without}
    return config_class(**{**base, **case.keys, **overrides}, architectures=[case.architecture])


def build_model(name: str, **overrides: Any) -> Any:
    """The reference model, float32, eager attention, every parameter seeded by the case's name (by its architecture where the reference
    is of our own)."""
    case: Case = CASES[name]
    if not case.config_class:
        own = build_reference(_own_config(case, overrides))
        randomise(own, seed=zlib.crc32(case.architecture.encode()))
        return own
    config = build_config(name, **overrides)
    model = getattr(transformers, case.architecture)._from_config(
        config, attn_implementation="eager", dtype=torch.float32
    )
    randomise(model, seed=zlib.crc32(name.encode()))
    return model.eval()


def _own_config(case: Case, overrides: dict[str, Any]) -> dict[str, Any]:
    """The whole config.json of a case without a class in transformers."""
    return {**case.keys, "architectures": [case.architecture], **overrides}


def write_checkpoint(
    name: str,
    folder: Path,
    max_shard_size: str = "5GB",
    with_tokenizer: bool = False,
    **overrides: Any,
) -> Path:
    """Save a case's model in `folder`; returns the folder."""
    case = CASES[name]
    if not case.config_class:
        return write_config(_own_config(case, overrides), folder)
    model = build_model(name, **overrides)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if with_tokenizer:
        write_tokenizer(folder, vocab_size=model.config.vocab_size)
    return folder
