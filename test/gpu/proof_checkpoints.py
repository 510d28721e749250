"""Random checkpoints for proofs on a GPU: every parameter is drawn, so that nothing that a model forgets stays hidden.

Values are exact in bfloat16: float32 and bfloat16 then run the same weights, and errors are those of the computation alone.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch

from sglang.verify.media import require_family
from sglang.verify.tiny import build_reference, write_tokenizer

_CORRECTIONS = ("correction_bias", "expert_bias")
_ROUTERS = ("mlp.gate.weight", "router.weight")


def write_checkpoint(raw: dict[str, Any], folder: Path, takes_media: bool = False) -> Path:
    """A checkpoint of a config.json with tokenizer, and with processor where it takes media. Returns the folder."""
    model = build_reference(raw)
    draw(model, seed=zlib.crc32(raw["architectures"][0].encode()))
    family = require_family(raw["architectures"]) if takes_media else None
    if family is not None:
        with torch.no_grad():  # an answer with tokens that stand for media could not be read
            model.get_output_embeddings().weight[family.silent_ids(raw)] = 0
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    path = folder / "config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**written, "architectures": raw["architectures"]}, indent=2))
    write_tokenizer(folder, vocab_size=model.config.get_text_config().vocab_size)
    if family is not None:
        family.write_processor(raw, str(folder))
    return folder


@torch.no_grad()
def draw(model: Any, seed: int) -> None:
    """Vectors around where they begin (ones, or zeros), matrices by the width that they sum over, routers with clear favourites."""
    generator = torch.Generator().manual_seed(seed)
    is_tied = model.config.get_text_config().tie_word_embeddings
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        centre, scale = _centre_and_scale(name, parameter, is_tied)
        parameter.copy_((centre + scale * values).bfloat16())
    for name, buffer in model.named_buffers():
        if name.endswith(_CORRECTIONS):
            buffer.copy_((0.1 * torch.randn(buffer.shape, generator=generator)).bfloat16())


def _centre_and_scale(name: str, parameter: torch.Tensor, is_tied: bool) -> tuple[float, float]:
    if parameter.dim() == 1:
        is_norm = "norm" in name and not name.endswith("bias")
        if name.endswith("sinks"):
            return 0.0, 1.0
        return (round(float(parameter.mean())), 0.15) if is_norm else (0.0, 0.1)
    if name.endswith("bias"):  # of experts
        return 0.0, 0.1
    if "embed" in name and parameter.dim() == 2 and not is_tied:
        return 0.0, 0.5
    width = parameter[0].numel() if parameter.dim() != 3 else parameter.shape[-1]
    gain = 3.0 if name.endswith(_ROUTERS) else 1.2
    return 0.0, gain * width**-0.5
