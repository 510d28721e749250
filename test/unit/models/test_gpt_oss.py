"""GPT-OSS: its MXFP4 checkpoints are unpacked exactly, and what is not MXFP4 is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from models.forward import HandRunner, Share, assert_close, load_model
from models.tiny import build_model, write_checkpoint
from safetensors.torch import load_file, save_file

from sglang.srt.layers.quantization.mxfp4 import dequant_mxfp4
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.models.common.weights import WeightLoadError
from sglang.srt.utils.errors import ConfigError

# A power of two times these fit four bits: sign, two bits of exponent, one of mantissa.
MAGNITUDES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
TOKENS = torch.randint(3, 512, (1, 40), generator=torch.Generator().manual_seed(0))
# Widths of the experts that groups of 32 divide.
SIZES = {"hidden_size": 64, "intermediate_size": 32}
DISK = "model.layers.1.mlp.experts"


def pack(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[..., n] -> blocks [..., n / 32, 16] and scales [..., n / 32]: the nearest numbers under the scale that fits the largest."""
    groups = values.float().unflatten(-1, (-1, 32))
    largest = groups.abs().amax(dim=-1).clamp(min=1e-30)
    exponent = (largest / 6).log2().ceil().clamp(-127, 127)
    scaled = groups / exponent.exp2()[..., None]
    codes = (scaled.abs()[..., None] - MAGNITUDES).abs().argmin(dim=-1)
    codes = codes + 8 * (scaled < 0)
    low, high = codes.unflatten(-1, (16, 2)).unbind(-1)
    return (low + 16 * high).to(torch.uint8), (exponent + 127).to(torch.uint8)


def unpack(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The definition, number by number."""
    out = []
    for block, scale in zip(
        blocks.reshape(-1, 16).tolist(), scales.flatten().tolist(), strict=True
    ):
        for code in (code for byte in block for code in (byte % 16, byte // 16)):
            sign = -1.0 if code >= 8 else 1.0
            exponent, mantissa = code % 8 // 2, code % 2
            value = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2 ** (exponent - 1)
            out.append(sign * value * 2.0 ** (scale - 127))
    return torch.tensor(out).view(*scales.shape[:-1], -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mxfp4_is_exact(dtype: torch.dtype) -> None:
    """Every code under scales from the smallest to the largest normal ones; a whole byte is two codes, the low one first."""
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 5, -1, -1)
    scales = (
        torch.tensor([2, 100, 127, 140, 250], dtype=torch.uint8).view(1, 5, 1).expand(2, -1, 16)
    )
    got = dequant_mxfp4(blocks, scales, dtype)
    assert got.dtype == dtype and got.shape == (2, 5, 512)
    assert torch.equal(got.double(), unpack(blocks, scales).double())
    assert got[0, 2, 0x21 * 2 : 0x21 * 2 + 2].tolist() == [0.5, 1.0]


def test_mxfp4_without_leading_dimensions_and_without_a_number() -> None:
    blocks = torch.full((2, 16), 0x7A, dtype=torch.uint8)
    got = dequant_mxfp4(blocks, torch.tensor([127, 255], dtype=torch.uint8))
    assert got[:4].tolist() == [-1.0, 6.0, -1.0, 6.0]
    assert got[32:].isnan().all(), "a scale of 255 says that there is no number"


@pytest.mark.parametrize(
    ("blocks", "scales", "message"),
    [
        (torch.zeros(2, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8), r"\[2, 8\]"),
        (torch.zeros(2, 16, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8), r"\[3\]"),
        (torch.zeros(2, 16), torch.zeros(2, dtype=torch.uint8), "float32"),
    ],
)
def test_what_is_not_mxfp4_is_refused(
    blocks: torch.Tensor, scales: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dequant_mxfp4(blocks, scales)


def _write_packed(folder: Path) -> dict[str, torch.Tensor]:
    """A published checkpoint: experts as blocks and scales. Returns what the packed numbers stand for, as [E, in, out]."""
    write_checkpoint("gpt-oss", folder, **SIZES)
    packed, meant = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if tensor.dim() != 3:
            packed[name] = tensor
            continue
        blocks, scales = pack(tensor.transpose(1, 2))
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        meant[name] = unpack(blocks, scales).transpose(1, 2)
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    quantization = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "quantization_config": quantization})
    )
    return meant


@torch.inference_mode()
def _ours(folder: Path) -> torch.Tensor:
    runner = HandRunner(load_model(folder), folder)
    return runner.step(ForwardMode.EXTEND, [Share(0, 0, TOKENS[0].tolist())])[0]


def test_a_packed_checkpoint_computes_what_its_numbers_say(tmp_path: Path) -> None:
    meant = _write_packed(tmp_path)
    assert f"{DISK}.gate_up_proj" in meant and meant[f"{DISK}.down_proj"].shape == (8, 32, 64)
    reference = build_model("gpt-oss", **SIZES)
    with torch.inference_mode():
        exact = reference(TOKENS, use_cache=False).logits[0]
        reference.load_state_dict(meant, strict=False)
        want = reference(TOKENS, use_cache=False).logits[0]
    got = _ours(tmp_path)
    assert_close(got, want, "packed")
    rounding = (got - exact).abs().max().item()
    assert rounding > 0.01, "packing changed nothing: the checkpoint was not packed"


def _lose(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    _write_packed(tmp_path)
    _lose(tmp_path, f"{DISK}.down_proj_scales")
    with pytest.raises(
        WeightLoadError, match=re.escape(f"tensor {DISK}.down_proj_blocks belongs to no parameter")
    ):
        load_model(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    _write_packed(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"mxfp4"', '"gptq"'))
    with pytest.raises(ConfigError, match="'gptq'"):
        load_model(tmp_path)
