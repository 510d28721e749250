"""Model files as people have them outside of this tree, served from an external package: the reference's logits, and strict loading."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models.proofs import make_proof
from models.tiny import write_checkpoint

import sglang.srt.model_loader.utils as loader_utils
import sglang.srt.models.registry as registry
from sglang.srt.models.common.weights import WeightLoadError
from sglang.verify.forms import Ask, Form, Schedule
from sglang.verify.subject import Subject

PACKAGE = "models.upstream_style"
FORMS = (
    Form("one whole prefill", (Ask("long", num_tokens=3), Ask("single", num_tokens=3))),
    Form(
        "chunks mixed with decode",
        (Ask("short", num_tokens=6), Ask("middle", 2, num_tokens=3)),
        Schedule(chunk_size=16, mixed_chunk=True),
        page_size=16,
    ),
)


@pytest.fixture(autouse=True)
def _external_package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A registry that starts with the environment variable set, as in a new process."""
    monkeypatch.setenv("SGLANG_EXTERNAL_MODEL_PACKAGE", PACKAGE)
    fresh = registry._Registry()
    monkeypatch.setattr(registry, "ModelRegistry", fresh)
    monkeypatch.setattr(loader_utils, "ModelRegistry", fresh)
    logging.disable(logging.WARNING)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    "case", ["qwen3", "qwen3-tied", "mixtral"], ids=["dense", "dense, tied", "mixture of experts"]
)
def test_same_logits(case: str, tmp_path: Path) -> None:
    proof = make_proof(case, tmp_path)
    model = proof.subject(1).model
    assert type(model).__module__.startswith(PACKAGE)
    for form in FORMS:
        result = proof.run(form)
        assert result.passed, f"{form.name}: {result.detail}"


def test_experts_can_be_looked_at(tmp_path: Path) -> None:
    write_checkpoint("mixtral", tmp_path)
    model: Any = Subject(str(tmp_path)).model
    facts = type(model).get_model_config_for_expert_location(model.config)
    weights = model.routed_experts_weights_of_layer
    assert dataclasses.asdict(facts) == {
        "num_layers": len(weights),
        "num_logical_experts": model.config.num_local_experts,
        "num_groups": None,
    }
    assert {len(w) for tensors in weights.values() for w in tensors} == {facts.num_logical_experts}


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_what_its_own_loader_cannot_take_is_named(tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"

    def widen(weights: dict[str, torch.Tensor]) -> None:
        weights[name] = torch.zeros(50, 64)

    write_checkpoint("qwen3", tmp_path)
    change_weights(tmp_path, widen)
    with pytest.raises(WeightLoadError) as refused:
        Subject(str(tmp_path))
    text = str(refused.value)
    owner = f"{PACKAGE}.dense.Qwen3ForCausalLM.load_weights"
    assert f"tensor {name} [50, 64] is refused by {owner}: ValueError: " in text
    assert "model.layers.1.self_attn.qkv_proj.weight, shard k: " in text
    assert "(in model.safetensors)" in text


def test_a_tensor_that_its_own_loader_does_not_know_is_named(tmp_path: Path) -> None:
    write_checkpoint("qwen3", tmp_path)
    change_weights(tmp_path, lambda weights: weights.update(extra=torch.zeros(3)))
    with pytest.raises(WeightLoadError, match=r"tensor extra \[3\] .*KeyError: 'extra' \(in model"):
        Subject(str(tmp_path))


@pytest.mark.parametrize(
    ("case", "left_out", "named"),
    [
        ("qwen3", "layers.1.self_attn.k_proj", "shard k of parameter model.layers.1.self_attn.qkv_proj.weight"),
        ("qwen3", "layers.0.input_layernorm", "parameter model.layers.0.input_layernorm.weight"),
        ("mixtral", "layers.1.block_sparse_moe.gate", "parameter model.layers.1.mlp.gate.weight"),
        ("mixtral", "layers.0.block_sparse_moe.experts.2.w3", "shard 2.w3 of parameter model.layers.0.mlp.experts.w13_weight"),
    ],
)  # fmt: skip
def test_what_its_own_loader_leaves_out_is_named(
    case: str, left_out: str, named: str, tmp_path: Path
) -> None:
    def remove(weights: dict[str, torch.Tensor]) -> None:
        names = [name for name in weights if left_out in name]
        assert len(names) == 1, sorted(weights)
        del weights[names[0]]

    write_checkpoint(case, tmp_path)
    change_weights(tmp_path, remove)
    with pytest.raises(WeightLoadError) as refused:
        Subject(str(tmp_path))
    texts = [problem.text for problem in refused.value.problems]
    assert len(texts) == 1, texts
    assert texts[0].startswith(f"{named} [") and texts[0].endswith("is filled by no tensor")
