"""Models with media that transformers has under another name: their checkpoints in both spellings.

A tiny checkpoint is drawn by transformers' class and written as its authors publish it; the reference reads what is on disk back.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from sglang.verify.media_internvl_chat import InternVLChatNames
from sglang.verify.media_llava_names import LlavaNames

Raw = Mapping[str, Any]
Tensors = dict[str, torch.Tensor]


class PublishedNames(Protocol):
    """Two spellings of the same model."""

    def config(self, raw: Raw) -> dict[str, Any]:
        """The config.json of transformers' class."""

    def publish(self, raw: Raw, tensors: Tensors) -> Tensors:
        """From what transformers writes to what the authors do."""

    def restore(self, raw: Raw, tensors: Tensors) -> Tensors:
        """The inverse."""


PUBLISHED_NAMES: dict[str, PublishedNames] = {
    "InternVLChatModel": InternVLChatNames(),
    "LlavaLlamaForCausalLM": LlavaNames(),
    "LlavaMistralForCausalLM": LlavaNames(),
    "LlavaQwenForCausalLM": LlavaNames(),
}


def published_names(raw: Raw) -> PublishedNames | None:
    """The spellings of a config.json's architecture; None where transformers reads it as it is."""
    names = raw.get("architectures") or ()
    return next((PUBLISHED_NAMES[name] for name in names if name in PUBLISHED_NAMES), None)


def publish(folder: Path, raw: Raw, names: PublishedNames) -> None:
    """Rewrite a folder that transformers saved."""
    _save(folder, raw, names.publish(raw, _load(folder)))


@contextlib.contextmanager
def as_transformers(folder: str) -> Iterator[str]:
    """A folder that transformers reads: the given one, or a temporary copy in its spelling."""
    raw = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    names = published_names(raw)
    if names is None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="sglang-verify-") as copy:
        _save(Path(copy), names.config(raw), names.restore(raw, _load(Path(folder))))
        yield copy


def _load(folder: Path) -> Tensors:
    from safetensors.torch import load_file

    tensors: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(path))
    return tensors


def _save(folder: Path, raw: Raw, tensors: Tensors) -> None:
    from safetensors.torch import save_file

    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(dict(raw), indent=2))
