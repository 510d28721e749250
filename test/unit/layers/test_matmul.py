"""The products of few rows agree with the exact one as closely as torch's matrix product does."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from sglang.srt.layers import matmul
from sglang.srt.layers.matmul import linear


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("num_rows", [0, 1, 3])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(dtype, num_rows, with_bias):
    torch.manual_seed(0)
    x, weight = torch.randn(num_rows, 257).to(dtype), torch.randn(131, 257).to(dtype)
    bias = torch.randn(131).to(dtype) if with_bias else None
    got = linear(x, weight, bias)
    want = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert got.shape == (num_rows, 131) and got.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    assert (got.double() - want).abs().max().item() <= tolerance * 40 if num_rows else True


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_rows", [2, 16, 64, 65])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("needs_rows", [False, True])
def test_large_weights_with_a_few_rows(dtype, num_rows, with_bias, needs_rows):
    torch.manual_seed(0)
    x, weight = torch.randn(num_rows, 1024).to(dtype), torch.randn(1040, 1024).to(dtype)
    bias = torch.randn(1040).to(dtype) if with_bias else None
    got = linear(x, weight, bias, needs_rows)
    want = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert got.shape == (num_rows, 1040) and got.dtype == dtype
    assert got.is_contiguous() or not needs_rows
    error = (got.double() - want).abs().max() / want.abs().max()
    assert error <= 2 * torch.finfo(dtype).eps


def test_a_few_rows_go_where_the_table_says(monkeypatch):
    """On a GPU; here the kernel is stood in for."""
    name = "sglang.srt.layers.triton_ops.few_rows_linear"
    stand_in = types.ModuleType(name)
    stand_in.few_rows_linear = lambda *given: given
    monkeypatch.setitem(sys.modules, name, stand_in)
    x, weight, bias = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)
    monkeypatch.setattr(matmul, "few_rows_tile", lambda x, weight: "tile")
    assert matmul.linear(x, weight, bias) == (x, weight, bias, "tile")
    monkeypatch.setattr(matmul, "few_rows_tile", lambda x, weight: None)
    torch.testing.assert_close(
        matmul.linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias)
    )
