"""Weight coverage: where tensors go, however a model file puts them there, and what is missed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.models.llama import LlamaForCausalLM
from sglang.srt.models.registry import ModelRegistry
from sglang.verify.coverage import Coverage, Placement, WeightFlow, measure_coverage
from sglang.verify.tiny import write_tiny

PARTS = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
Weights = Iterable[tuple[str, torch.Tensor]]


def cover(folder: Path) -> Coverage:
    return measure_coverage(str(folder), ModelConfig(str(folder), dtype="float32"))


def test_llama_is_covered_shard_by_shard(coverage: Coverage) -> None:
    assert coverage.passed and coverage.is_traced
    assert (coverage.num_tensors, coverage.num_parameters) == (21, 15)
    fused = "model.layers.1.self_attn.qkv_proj.weight"
    shards = {p.tensor.split(".")[-2]: p for p in coverage.placements if p.parameter == fused}
    rows = {name: (p.start, p.num_rows) for name, p in shards.items()}
    assert rows == {"q_proj": (0, 64), "k_proj": (64, 32), "v_proj": (96, 32)}


def test_the_fallback_is_covered_without_a_trace(tmp_path: Path) -> None:
    folder = str(write_tiny("llama", tmp_path))
    config = ModelConfig(folder, dtype="float32", model_impl="transformers")
    found = measure_coverage(folder, config)
    assert found.passed and not found.is_traced
    assert found.class_name == "TransformersForCausalLM"
    assert (found.placements, found.ignored, found.num_tensors) == ([], [], 21)


class Bad(LlamaForCausalLM):
    """Loads everything but what `drop` says."""

    drop = ""

    def load_weights(self, weights: Weights) -> set[str]:
        return super().load_weights((n, t) for n, t in weights if self.drop not in n)


def _register(monkeypatch: pytest.MonkeyPatch, cls: type) -> None:
    monkeypatch.setitem(ModelRegistry.models, "LlamaForCausalLM", cls)


def test_a_dropped_shard_is_an_unfilled_parameter_and_a_tensor_not_accounted_for(
    monkeypatch: pytest.MonkeyPatch, llama: Path
) -> None:
    monkeypatch.setattr(Bad, "drop", "layers.0.mlp.up_proj")
    _register(monkeypatch, Bad)
    found = cover(llama)
    assert not found.passed
    assert found.unfilled == ["model.layers.0.mlp.gate_up_proj.weight"]
    assert found.not_accounted == ["model.layers.0.mlp.up_proj.weight"]


def test_a_plugin_that_fills_parameters_by_itself_is_seen(
    monkeypatch: pytest.MonkeyPatch, llama: Path
) -> None:
    class Own(LlamaForCausalLM):
        def load_weights(self, weights: Weights) -> set[str]:
            tensors = dict(weights)
            for name, param in self.named_parameters():
                fused = next((part for part in PARTS if part in name), "")
                names = [name.replace(fused, part) for part in PARTS.get(fused, [""])]
                param.data = torch.cat([tensors[n] for n in names]).clone()
            return set()

    _register(monkeypatch, Own)
    found = cover(llama)
    assert found.passed, (found.unfilled, found.not_accounted)
    whole = [
        p for p in found.placements if p.parameter.endswith("layers.0.mlp.gate_up_proj.weight")
    ]
    assert {p.tensor.split(".")[-2] for p in whole} == {"gate_proj", "up_proj"}


def test_flow_follows_views_arithmetic_and_numbers() -> None:
    model: Any = nn.Linear(4, 6)
    sources = {
        "a": torch.ones(4, 3),
        "b": torch.ones(3, 4),
        "scale": torch.ones(1),
        "no": torch.ones(2),
    }
    with WeightFlow(model) as flow, torch.no_grad():
        for name, tensor in sources.items():
            flow.announce(name, tensor)
        model.weight[:3].copy_(sources["a"].t().contiguous() * 2)
        model.weight[3:].copy_(sources["b"])
        model.bias.fill_(sources["scale"].item())
    assert flow.placements == [Placement("a", "weight", 0, 3), Placement("b", "weight", 3, 3)]
    assert flow.read_as_number == {"scale"}
