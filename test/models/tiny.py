"""Writes tiny random checkpoints with transformers, and a tiny tokenizer.

Every parameter is drawn at random: transformers' own initialisation leaves norms at one and biases at zero, so an engine that forgot
them would still agree with the reference. The files are what `save_pretrained` writes: the published names.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from models.configs import BASE, CASES, Case


def build_config(name: str, **overrides: Any) -> Any:
    """The transformers config of a case."""
    case = CASES[name]
    config_class = getattr(transformers, case.config_class)
    return config_class(**{**BASE, **case.keys, **overrides}, architectures=[case.architecture])


def build_model(name: str, **overrides: Any) -> Any:
    """The reference model, float32, eager attention, every parameter seeded by the case's name."""
    case: Case = CASES[name]
    config = build_config(name, **overrides)
    model = getattr(transformers, case.architecture)._from_config(
        config, attn_implementation="eager", dtype=torch.float32
    )
    randomise(model, seed=zlib.crc32(name.encode()))
    return model.eval()


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Norm-like vectors around one, embeddings at 0.04 (so that tied models do not repeat a token), matrices at 0.12."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, param in model.named_parameters():
            values = torch.randn(param.shape, generator=generator)
            if param.dim() == 1 and "norm" in name:
                param.copy_(1.0 + 0.2 * values)
            else:
                param.copy_(values * (0.04 if "embed" in name or "wte" in name else 0.12))


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


def write_tokenizer(folder: Path, vocab_size: int = 512) -> None:
    """A byte-level tokenizer: three special tokens, then the 256 bytes, then fillers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<pad>", "<s>", "</s>", *letters]
    tokens += [f"<filler_{i}>" for i in range(vocab_size - len(tokens))]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
