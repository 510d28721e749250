"""Kernels that are launched early, in Triton's interpreter, where nothing is: run by `test_dependent_launch.py` with TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest
import torch

from sglang.srt.layers.triton_ops import few_rows
from sglang.srt.utils import dependent_launch


def test_the_interpreter_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    dependent_launch.launches_early.cache_clear()
    assert dependent_launch.launch_options(torch.device("cuda", 0)) == {"PDL": False}
    dependent_launch.launches_early.cache_clear()


@pytest.mark.parametrize("ahead", [0, 64, 128, 150])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_product_whose_weight_is_read_ahead(ahead: int, has_bias: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 150), torch.randn(7, 150), torch.randn(7)
    out = torch.full((1, 7), torch.nan)
    few_rows._one_row_kernel[(4,)](
        x,
        weight,
        bias,
        out,
        7,
        weight.stride(0),
        WIDTH=150,
        ROWS=2,
        PIECE=64,
        AHEAD=ahead,
        BIAS=has_bias,
        ACTIVATION=None,
        PDL=False,
    )
    want = torch.nn.functional.linear(x, weight, bias if has_bias else None)
    torch.testing.assert_close(out, want)


@pytest.mark.parametrize("ahead", [0, 64, 150])
@pytest.mark.parametrize("rows", [2, 4])
def test_a_gated_product_whose_weight_is_read_ahead(ahead: int, rows: int) -> None:
    """The last program has a row of each half more than there are."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 150), torch.randn(14, 150), torch.randn(14)
    out = torch.full((1, 7), torch.nan)
    few_rows._one_row_kernel[(8 // (rows // 2),)](
        x,
        weight,
        bias,
        out,
        7,
        weight.stride(0),
        WIDTH=150,
        ROWS=rows,
        PIECE=64,
        AHEAD=ahead,
        BIAS=True,
        ACTIVATION="silu",
        PDL=False,
    )
    gate, up = torch.nn.functional.linear(x, weight, bias).chunk(2, -1)
    torch.testing.assert_close(out, torch.nn.functional.silu(gate) * up)


@pytest.mark.parametrize("width", [1024, 3072, 14336, 1500])
def test_what_is_read_ahead_fits_registers(width: int) -> None:
    rows, piece, num_warps = few_rows._tile(width)
    ahead = few_rows._columns_ahead(width, rows, piece, num_warps)
    assert 0 < ahead <= width and (ahead == width or ahead % piece == 0)
    assert -(-ahead // piece) * piece * rows <= 64 * 2 * 32 * num_warps
