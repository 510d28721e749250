"""The convolution, the gated norm, 8-bit scales and any-resolution grids against their definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sglang.srt.layers.attention.fla.layernorm_gated import RMSNorm, layernorm_fn
from sglang.srt.layers.attention.mamba.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from sglang.srt.layers.attention.mamba.mamba import mamba_v2_sharded_weight_loader
from sglang.srt.layers.quantization.fp8_utils import (
    block_quant_dequant,
    block_quant_to_tensor_quant,
    channel_quant_to_tensor_quant,
    normalize_e4m3fn_to_e4m3fnuz,
)
from sglang.srt.layers.quantization.int8_utils import block_dequant
from sglang.srt.model_loader.weight_utils import sharded_weight_loader
from sglang.srt.multimodal.mm_utils import (
    get_anyres_image_grid_shape,
    unpad_image,
    unpad_image_shape,
)

CHANNELS, WIDTH = 6, 4


def convolve_by_hand(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    rows = []
    for t in range(x.shape[1]):
        total = bias.clone()
        for j in range(WIDTH):
            at = t - (WIDTH - 1) + j
            if at >= 0:
                total += weight[:, j] * x[:, at]
        rows.append(F.silu(total))
    return torch.stack(rows, dim=1)


def test_convolution_in_pieces_is_the_convolution_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(CHANNELS, WIDTH, generator=generator)
    bias = torch.randn(CHANNELS, generator=generator)
    sequences = [torch.randn(CHANNELS, n, generator=generator) for n in (9, 7)]
    expected = [convolve_by_hand(x, weight, bias) for x in sequences]
    states = torch.full(
        (5, CHANNELS, WIDTH - 1), 7.0
    )  # rows 3 and 1 are used, with rubbish in them
    rows = torch.tensor([3, 1])
    cuts = [(0, 5, 0, 2), (5, 8, 2, 6)]  # of the first and second sequence
    got: list[list[torch.Tensor]] = [[], []]
    for turn, (a, b, c, d) in enumerate(cuts):
        x = torch.cat([sequences[0][:, a:b], sequences[1][:, c:d]], dim=1)
        starts = torch.tensor([0, b - a, b - a + d - c])
        resumes = torch.tensor([turn > 0] * 2)
        out = causal_conv1d_fn(x, weight, bias, starts, rows, resumes, states)
        got[0].append(out[:, : b - a])
        got[1].append(out[:, b - a :])
    last = torch.stack([sequences[0][:, 8], sequences[1][:, 6]])
    out = causal_conv1d_update(last, states, weight, bias, "silu", conv_state_indices=rows)
    for pieces, row, whole in zip(got, out, expected, strict=True):
        torch.testing.assert_close(torch.cat([*pieces, row[:, None]], dim=1), whole)
    assert (states[[0, 2, 4]] == 7.0).all(), "rows of others were written"


def test_convolution_leaves_padding_alone() -> None:
    states = torch.zeros(2, CHANNELS, WIDTH - 1)
    x, weight = torch.ones(2, CHANNELS), torch.ones(CHANNELS, WIDTH)
    out = causal_conv1d_update(x, states, weight, conv_state_indices=torch.tensor([-1, 0]))
    assert out[0].eq(0).all() and out[1].eq(1).all()
    with pytest.raises(ValueError, match="'gelu' is unknown"):
        causal_conv1d_update(x, states, weight, activation="gelu")


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("group", [None, 4])
def test_gated_norm(before: bool, group: int | None) -> None:
    generator = torch.Generator().manual_seed(1)
    x, z = torch.randn(2, 3, 8, generator=generator).unbind()
    norm = RMSNorm(8, eps=1e-5, group_size=group, norm_before_gate=before)
    norm.weight.data.copy_(torch.randn(8, generator=generator))
    size = group or 8
    plain = x if before else x * F.silu(z)
    groups = [F.rms_norm(part, (size,), eps=1e-5) for part in plain.split(size, dim=-1)]
    expected = torch.cat(groups, dim=-1) * norm.weight
    torch.testing.assert_close(norm(x, z), expected * F.silu(z) if before else expected)
    with pytest.raises(ValueError, match="activation='tanh' is unknown"):
        RMSNorm(8, activation="tanh")


def test_layer_norm_without_a_gate() -> None:
    x, weight, bias = torch.randn(5, 8), torch.randn(8), torch.randn(8)
    torch.testing.assert_close(
        layernorm_fn(x, weight, bias, eps=1e-6), F.layer_norm(x, (8,), weight, bias, 1e-6)
    )


def test_block_scales() -> None:
    weight = torch.randn(5, 7)
    scales = torch.tensor([[0.5, 2.0], [4.0, 8.0], [1.0, 0.25]])
    quantized = weight.to(torch.float8_e4m3fn)
    expected = quantized.float().clone()
    for i in range(5):
        for j in range(7):
            expected[i, j] *= scales[i // 2, j // 4]
    torch.testing.assert_close(
        block_quant_dequant(quantized, scales, [2, 4], torch.float32), expected
    )
    whole, scale = block_quant_to_tensor_quant(quantized, scales, [2, 4])
    torch.testing.assert_close(whole.float() * scale, expected, rtol=0.07, atol=0.07)
    ints = torch.randint(-9, 9, (5, 7), dtype=torch.int8)
    assert block_dequant(ints, scales, [2, 4])[4, 6] == ints[4, 6] * 0.25
    with pytest.raises(ValueError, match=r"must be \[3, 2\]; they are \[2, 2\]"):
        block_dequant(ints, scales[:2], [2, 4])


def test_scales_of_rows_and_the_other_number_format() -> None:
    weight = torch.randn(3, 4).to(torch.float8_e4m3fn)
    rows = torch.tensor([1.0, 2.0, 4.0])
    whole, scale = channel_quant_to_tensor_quant(weight, rows)
    torch.testing.assert_close(
        whole.float() * scale, weight.float() * rows[:, None], rtol=0.07, atol=0.05
    )
    values = torch.tensor([1.5, -0.0, -2.0]).to(torch.float8_e4m3fn)
    other, doubled, none = normalize_e4m3fn_to_e4m3fnuz(values, torch.tensor(3.0))
    assert (other.float() * doubled).tolist() == [4.5, 0.0, -6.0] and none is None


def test_loaders_that_cut_parts() -> None:
    loaded = torch.arange(12.0).view(6, 2)
    param = torch.nn.Parameter(torch.zeros(3, 2), requires_grad=False)
    mamba_v2_sharded_weight_loader([(4, 0, 0), (2, 0, 0)], tp_size=2, tp_rank=1)(param, loaded)
    assert param.tolist() == loaded[[2, 3, 5]].tolist()
    whole = torch.nn.Parameter(torch.zeros(6, 2), requires_grad=False)
    sharded_weight_loader(0)(whole, loaded)
    assert whole.tolist() == loaded.tolist()
    with pytest.raises(ValueError, match="is not 1 times 6 along dimension 0"):
        sharded_weight_loader(0)(whole, loaded[:4])


@pytest.mark.parametrize(
    ("size", "tiles"),
    [((100, 100), (2, 2)), ((300, 100), (2, 1)), ((100, 900), (1, 3)), ((40, 40), (1, 1))],
)
def test_tiles_of_a_picture(size: tuple[int, int], tiles: tuple[int, int]) -> None:
    canvases = [(48, 48), (96, 48), (48, 96), (96, 96), (48, 144)]
    assert get_anyres_image_grid_shape(size, canvases, 48) == tiles
    assert get_anyres_image_grid_shape(size, str(canvases), 48) == tiles


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (33, 33)])
def test_padding_is_cut_away(size: tuple[int, int]) -> None:
    width, height = size
    scale = min(16 / width, 16 / height)
    inner = (int(height * scale), int(width * scale))
    padded = torch.zeros(3, 16, 16)
    top, left = (16 - inner[0]) // 2, (16 - inner[1]) // 2
    padded[:, top : top + inner[0], left : left + inner[1]] = 1
    cut = unpad_image(padded, size)
    assert cut.shape[1:] == unpad_image_shape(16, 16, size)
    assert cut.eq(1).all() and cut.sum() == padded.sum()
