"""Sizes that ranks cannot share are refused when the model is built, with both numbers."""

from __future__ import annotations

import pytest
import torch

from sglang.srt.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from sglang.srt.layers.moe.fused_moe_triton import layer as experts
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.utils.errors import ConfigError


def test_intermediate_size() -> None:
    name = "model.layers.0.mlp"
    with pytest.raises(ConfigError, match=rf"tp_size=5 .* output size 96 of {name}.gate_up_proj"):
        MergedColumnParallelLinear(
            64, [96, 96], prefix=f"{name}.gate_up_proj", tp_rank=0, tp_size=5
        )
    with pytest.raises(ConfigError, match=rf"tp_size=5 .* input size 96 of {name}.down_proj"):
        RowParallelLinear(96, 64, prefix=f"{name}.down_proj", tp_rank=0, tp_size=5)


def test_heads() -> None:
    with pytest.raises(ConfigError, match="tp_size=3 does not divide the number of heads 4"):
        QKVParallelLinear(64, 16, 4, 2, tp_rank=0, tp_size=3)
    with pytest.raises(ConfigError, match="tp_size=4 is no multiple of the 3 kv heads of model.x"):
        QKVParallelLinear(64, 16, 12, 3, tp_rank=0, tp_size=4, prefix="model.x")


def test_kv_heads_are_replicated() -> None:
    """Rank 3 of 4 holds the second of two kv heads, which rank 2 holds too."""
    layers = [QKVParallelLinear(8, 2, 4, 2, bias=False, tp_rank=rank, tp_size=4) for rank in (2, 3)]
    k = torch.randn(4, 8)
    for layer in layers:
        layer.weight.weight_loader(layer.weight, k, "k")
        assert (layer.num_kv_heads, layer.num_kv_head_replicas) == (1, 2)
        torch.testing.assert_close(layer.weight[2:4], k[2:4])


def test_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "get_moe_tensor_parallel_world_size", lambda: 3)
    with pytest.raises(ConfigError, match="moe_tp_size=3 does not divide the intermediate size 32"):
        FusedMoE(4, 16, 32, layer_id=0, prefix="model.layers.0.mlp.experts")
    monkeypatch.setattr(experts, "get_moe_expert_parallel_world_size", lambda: 3)
    with pytest.raises(ConfigError, match="ep_size=3 does not divide the experts 4"):
        FusedMoE(4, 16, 33, layer_id=0)
