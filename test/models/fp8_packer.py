"""Turns a tiny plain checkpoint into an eight-bit one and its twin: a plain checkpoint of the same numbers. Written apart from the package's
own arithmetic."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

LARGEST = 448.0
# The projections; embeddings, heads, norms and routers are never packed.
_PACKED = re.compile(r"proj(_with_mqa)?\.weight$")


@dataclass
class Packing:
    """How to pack: `blocks` (rows, columns), else one scale per "tensor" or "channel". `plain`: modules left as they are."""

    blocks: tuple[int, int] | None = None
    scales: str = "tensor"
    static: bool = False
    plain: tuple[str, ...] = ()
    cache_scales: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "quant_method": "fp8",
            "activation_scheme": "static" if self.static else "dynamic",
            "modules_to_not_convert": list(self.plain),
        }
        if self.blocks is not None:
            config |= {"fmt": "e4m3", "weight_block_size": list(self.blocks)}
        return config | self.settings


def pack_checkpoint(folder: Path, packed: Path, twin: Path, packing: Packing) -> None:
    """Write the packed checkpoint and the plain one of its numbers."""
    tensors = load_file(folder / "model.safetensors")
    codes: dict[str, torch.Tensor] = {}
    numbers: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        is_plain = any(part in module for part in packing.plain)
        if is_plain or not _PACKED.search(name):
            codes[name] = numbers[name] = tensor
            continue
        new, numbers[name] = _pack(name, tensor, packing)
        codes |= new
    if packing.cache_scales:
        codes |= _cache_scales(tensors)
    for target, content in ((packed, codes), (twin, numbers)):
        shutil.copytree(folder, target)
        save_file(
            {name: value.contiguous() for name, value in content.items()},
            target / "model.safetensors",
            {"format": "pt"},
        )
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] = packing.config()
    (packed / "config.json").write_text(json.dumps(config))


def cache_scale(layer: int, which: str) -> float:
    return 0.5 + 0.25 * layer + (0.5 if which == "v" else 0.0)


def input_scale(module: str) -> float:
    """A different one for each module; the parts of a fused layer count by their largest."""
    return 0.02 + 0.001 * (len(module) % 7)


def round_to_codes(x: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    return (x / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def _pack(
    name: str, tensor: torch.Tensor, packing: Packing
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    module = name.removesuffix(".weight")
    if packing.blocks is not None:
        codes, scales, numbers = _pack_blocks(tensor, *packing.blocks)
        return {name: codes, f"{module}.weight_scale_inv": scales}, numbers
    if packing.scales == "channel":
        scale = tensor.abs().amax(1, keepdim=True) / LARGEST
    else:
        scale = tensor.abs().max() / LARGEST
    codes = round_to_codes(tensor, scale)
    found = {name: codes, f"{module}.weight_scale": scale}
    if packing.static:
        found[f"{module}.input_scale"] = torch.tensor(input_scale(module))
    return found, codes.float() * scale


def _pack_blocks(
    tensor: torch.Tensor, rows: int, columns: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    height, width = tensor.shape
    scales = torch.empty(-(-height // rows), -(-width // columns))
    codes, numbers = torch.empty_like(tensor, dtype=torch.float8_e4m3fn), torch.empty_like(tensor)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            place = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
            scales[i, j] = tensor[place].abs().max() / LARGEST
            codes[place] = round_to_codes(tensor[place], scales[i, j])
            numbers[place] = codes[place].float() * scales[i, j]
    return codes, scales, numbers


def _cache_scales(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    layers = {
        int(match[1]) for name in tensors if (match := re.match(r"model\.layers\.(\d+)\.", name))
    }
    return {
        f"model.layers.{layer}.self_attn.{which}_proj.{which}_scale": torch.tensor(
            cache_scale(layer, which)
        )
        for layer in layers
        for which in ("k", "v")
    }
