"""The Triton kernels of layers in Triton's interpreter, and when layers decline them."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from triton_interpreter import output_of, run_cases

from sglang.srt.layers.activation import SiluAndMul
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.norm_rope import norm_rope_and_store


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)
@pytest.mark.parametrize(
    "name",
    [
        "triton_layer_cases.py",
        "triton_graph_cases.py",
        "triton_choose_cases.py",
        "triton_edit_cases.py",
    ],
)
def test_kernels_in_the_interpreter(name):
    output = output_of(run_cases(name))
    assert " passed" in output and "skipped" not in output


def test_kernels_are_for_tensors_on_a_gpu():
    """A layer built for a GPU still computes what it is given on a CPU."""
    norm, x = RMSNorm(16), torch.randn(3, 16)
    torch.testing.assert_close(norm.forward_cuda(x), norm.forward_native(x))
    total = norm.forward_cuda(x, x)
    assert torch.equal(total[1], x + x)
    gated = torch.randn(2, 8)
    assert torch.equal(SiluAndMul().forward_cuda(gated), SiluAndMul().forward_native(gated))


def test_the_separate_layers_serve_a_cpu():
    q, k, v = torch.randn(3, 2, 32)
    before = q.clone()
    batch = SimpleNamespace(token_to_kv_pool=None)
    assert not norm_rope_and_store(torch.arange(2), q, k, v, None, batch, None, None, None)
    assert torch.equal(q, before)
