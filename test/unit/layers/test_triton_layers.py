"""The Triton kernels of layers in Triton's interpreter, and when layers decline them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sglang.srt.layers.activation import SiluAndMul
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.norm_rope import norm_rope_and_store

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)
@pytest.mark.parametrize("name", ["triton_layer_cases.py", "triton_graph_cases.py"])
def test_kernels_in_the_interpreter(name):
    """In a process of its own: how Triton runs is decided when it is first imported."""
    path = [str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(path)}
    cases = Path(__file__).with_name(name)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


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
