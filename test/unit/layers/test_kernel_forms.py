"""What is launched ahead covers what steps ask for: every number of tokens, every way to sample."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sglang.srt.layers.moe.fused_moe_triton import FusedMoE
from sglang.srt.layers.moe.kernel_forms import launch_expert_forms
from sglang.srt.layers.moe.tiles import Shape, choose_tiles, tile_bounds
from sglang.srt.layers.sampling_forms import launch_sampling_forms

CASES = Path(__file__).with_name("kernel_forms_cases.py")
has_triton = importlib.util.find_spec("triton") is not None


@pytest.mark.skipif(not has_triton, reason="the package triton is not installed")
def test_no_step_asks_for_a_kernel_that_was_not_launched_ahead() -> None:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    found = subprocess.run([sys.executable, str(CASES)], env=env, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    names = ["by the rule", "weighted before", "unsummed", "as measured"]
    wanted = [*(f"experts {name}" for name in names), "sampling", "slots", "values"]
    assert found.stdout.splitlines() == [f"{name}: True, missing []" for name in wanted]


@pytest.mark.parametrize("sizes", [(128, 2048, 768, 8), (8, 1024, 512, 2), (60, 200, 88, 4)])
def test_tiles_change_at_bounds_only(sizes) -> None:
    num_experts, hidden, inner, top_k = sizes

    def shape(num_tokens: int) -> Shape:
        choices = top_k * num_tokens
        return Shape(num_tokens, choices, num_experts, num_experts, hidden, inner, True, 2, 2)

    counts = {bound // top_k + 1 for bound in tile_bounds(shape(1))}
    changes = [n for n in range(2, 20_000) if choose_tiles(shape(n)) != choose_tiles(shape(n - 1))]
    assert changes and counts.issuperset(changes)


def test_without_a_gpu_nothing_is_launched_and_nothing_breaks() -> None:
    layer = FusedMoE(4, 16, 16, layer_id=0, top_k=2)
    launch_expert_forms(torch.nn.ModuleList([layer, torch.nn.Linear(2, 2)]), 4096)
    launch_sampling_forms(200, torch.device("cpu"))
