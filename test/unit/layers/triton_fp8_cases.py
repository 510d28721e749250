"""The Triton kernels of eight-bit floating point against plain torch; run by `test_triton_fp8.py` in Triton's interpreter, and by
`test/gpu/test_fp8_gpu.py` on a GPU.

In the interpreter it needs TRITON_INTERPRET=1 before Triton is imported, hence a process of its own.
"""

from __future__ import annotations

import os

import pytest
import torch

from sglang.srt.layers.quantization.block_scales import scale_blocks
from sglang.srt.layers.quantization.fp8_math import round_rows, round_with
from sglang.srt.layers.triton_ops import fp8
from sglang.srt.mem_cache.fp8_pool import FP8_DTYPES, to_codes

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
# The interpreter computes bfloat16 wrongly.
DTYPES = [torch.float32, torch.float16] + ([] if IS_INTERPRETED else [torch.bfloat16])
E4M3 = torch.float8_e4m3fn


@pytest.fixture(autouse=True)
def on_the_device(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(fp8, "_MAX_BLOCK", 64)  # so that rows have several blocks
    with torch.device(DEVICE), torch.inference_mode():
        yield


def values_of(*shape: int, scale: float, dtype: torch.dtype = E4M3) -> torch.Tensor:
    """Numbers to round. The interpreter loses what rounding carries into the exponent, so there they are codes already."""
    x = torch.randn(*shape) * 30
    return x.to(dtype).float() * scale if IS_INTERPRETED else x * scale


def check_codes(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    assert torch.equal(actual.float(), expected.float())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 64, 200])
def test_rows_are_rounded_as_by_torch(dtype, width):
    x = values_of(4, width, scale=0.25)
    x[torch.arange(4), torch.arange(4)] = torch.tensor([112.0, -112.0, -112.0, 112.0])
    x = torch.cat([x, torch.zeros(1, width)]).to(dtype)
    codes, scales = fp8.round_rows_kernel(x, E4M3, None)
    expected, expected_scales = round_rows(x)
    assert torch.equal(scales, expected_scales)
    check_codes(codes, expected)
    strided = x.repeat(1, 2)[:, :width]
    check_codes(fp8.round_rows_kernel(strided, E4M3, None)[0], expected)


def test_rows_are_rounded_with_a_given_scale():
    x, scale = values_of(4, 96, scale=0.25), torch.tensor([0.25])
    x[2, 5], x[3, 90] = 1e6, -1e6
    codes, scales = fp8.round_rows_kernel(x, E4M3, scale)
    check_codes(codes, round_with(x, scale))
    assert scales.flatten().tolist() == [0.25] * 4
    assert (codes[2, 5].item(), codes[3, 90].item()) == (448, -448)


def test_no_rows():
    codes, scales = fp8.round_rows_kernel(torch.randn(0, 16), E4M3, None)
    assert codes.shape == (0, 16) and scales.shape == (0, 1)


@pytest.mark.skipif(IS_INTERPRETED, reason="the interpreter has no NaN among codes")
def test_nan_is_not_hidden():
    x = values_of(3, 96, scale=1.0)
    x[1, 70] = torch.nan
    codes, scales = fp8.round_rows_kernel(x, E4M3, None)
    assert (codes.float() * scales).isnan().any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", FP8_DTYPES)
@pytest.mark.parametrize("slot_dtype", [torch.int32, torch.int64])
def test_codes_are_stored_in_their_slots(dtype, slot_dtype):
    buffer = torch.zeros(9, 3, 32).to(dtype)
    fused = values_of(4, 2, 96, scale=0.5, dtype=dtype)
    values, slots = fused[:, 0].view(4, 3, 32), torch.tensor([7, 2, 5, 1], dtype=slot_dtype)
    fp8.store_codes_kernel(values, buffer, slots, 0.5)
    check_codes(buffer[slots.long()], to_codes(values, dtype, 0.5))
    others = [slot for slot in range(9) if slot not in (7, 2, 5, 1)]
    assert not buffer.float()[others].any()
    fp8.store_codes_kernel(values[:0], buffer, slots[:0], 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40, 300), (16, 128), (3, 5)])
def test_blocks_are_expanded(dtype, shape):
    weight = torch.randn(shape).to(E4M3)
    scales = torch.rand(-(-shape[0] // 16), -(-shape[1] // 64)) + 0.5
    expected = scale_blocks(weight, scales, [16, 64], dtype)
    got = fp8.expand_blocks_kernel(weight, scales, [16, 64], dtype)
    assert torch.equal(got, expected)
