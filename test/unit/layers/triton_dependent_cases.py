"""Kernels that are launched early, in Triton's interpreter, where nothing is: run by `test_dependent_launch.py` with TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest
import torch

from sglang.srt.layers.triton_ops import dependent_launch, few_rows


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
        PDL=False,
    )
    want = torch.nn.functional.linear(x, weight, bias if has_bias else None)
    torch.testing.assert_close(out, want)


@pytest.mark.parametrize("num_out, width", [(4096, 1024), (1024, 3072), (4096, 14336), (7, 1500)])
def test_what_is_read_ahead_fits_registers(num_out: int, width: int) -> None:
    rows, piece, num_warps = few_rows._tile(num_out, width)
    ahead = few_rows._columns_ahead(width, rows, piece, num_warps)
    assert 0 < ahead <= width and (ahead == width or ahead % piece == 0)
    assert -(-ahead // piece) * piece * rows <= 64 * 2 * 32 * num_warps
