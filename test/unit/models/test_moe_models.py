"""Families with experts: every matrix of every expert is placed, from both layouts, and two ranks compute what one does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.configs import CASES
from models.configs_moe import MOE_CASES
from models.forward import load_model
from models.tiny import build_model, write_checkpoint
from models.two_ranks import assert_two_ranks_agree
from safetensors.torch import load_file, save_file

from sglang.srt.models.common.weights import ExpertNames, ExpertShard, WeightLoadError, WeightMap
from sglang.srt.utils.errors import ConfigError

TOKENS = torch.randint(3, 512, (1, 40), generator=torch.Generator().manual_seed(0))
Tensors = dict[str, torch.Tensor]

FEATURES: list[tuple[str, dict[str, Any]]] = [
    ("mixtral", {"num_experts_per_tok": 2}),
    ("mixtral-window", {"sliding_window": None}),
    ("qwen3-moe", {"norm_topk_prob": False}),
    ("qwen3-moe-mixed", {"norm_topk_prob": True}),
    ("qwen3-moe-mixed", {"use_sliding_window": False}),
    ("qwen2-moe", {"norm_topk_prob": True}),
    ("qwen2-moe-mixed", {"norm_topk_prob": False}),
    ("qwen2-moe-mixed", {"layer_types": ["full_attention"] * 4}),
    ("olmoe", {"norm_topk_prob": True}),
    ("olmoe", {"clip_qkv": None}),
    ("olmoe-unclipped", {"norm_topk_prob": False}),
]


@torch.inference_mode()
def _logits(name: str, **overrides: Any) -> torch.Tensor:
    return build_model(name, **overrides)(TOKENS, use_cache=False).logits[0].float()


@pytest.mark.parametrize(("name", "without"), FEATURES)
def test_a_feature_left_out_would_be_noticed(name: str, without: dict[str, Any]) -> None:
    """The reference itself, with the same weights, moves by a hundred times what the comparison allows."""
    with_feature = _logits(name)
    allowed = 1e-4 * max(1.0, with_feature.abs().max().item())
    assert (_logits(name, **without) - with_feature).abs().max().item() > 100 * allowed


def _rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> set[str]:
    """Change the tensors of a checkpoint; returns the new names."""
    file = folder / "model.safetensors"
    tensors = change(load_file(file))
    save_file(tensors, file, metadata={"format": "pt"})
    return set(tensors)


# case, and the names on disk of one expert's gate and of all experts' down matrices
LAYOUTS = [
    (
        "mixtral",
        "model.layers.1.block_sparse_moe.experts.7.w1.weight",
        "model.layers.1.mlp.experts.down_proj",
    ),
    (
        "qwen3-moe",
        "model.layers.1.mlp.experts.7.gate_proj.weight",
        "model.layers.1.mlp.experts.down_proj",
    ),
    (
        "qwen2-moe",
        "model.layers.1.mlp.experts.7.gate_proj.weight",
        "model.layers.1.mlp.experts.down_proj",
    ),
    (
        "olmoe",
        "model.layers.1.mlp.experts.7.gate_proj.weight",
        "model.layers.1.mlp.experts.down_proj",
    ),
]


@pytest.mark.parametrize(("name", "one_expert", "all_experts"), LAYOUTS)
def test_both_layouts_fill_the_same_parameters(
    name: str, one_expert: str, all_experts: str, tmp_path: Path
) -> None:
    classic = write_checkpoint(name, tmp_path / "classic")
    fused = tmp_path / "fused"
    build_model(name).save_pretrained(fused, save_original_format=False)
    assert one_expert in load_file(classic / "model.safetensors")
    assert all_experts in load_file(fused / "model.safetensors")
    expected = dict(load_model(classic).named_parameters())
    for key, parameter in load_model(fused).named_parameters():
        assert torch.equal(parameter, expected.pop(key)), key
    assert not expected


EXPERTS = "model.layers.1.mlp.experts"


def _without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key not in names}


def _with(name: str, tensor: torch.Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: tensor}


MISFITS: list[tuple[Callable[[Tensors], Tensors], str]] = [
    (
        _without(f"{EXPERTS}.5.up_proj.weight"),
        f"shard 5.w3 of parameter {EXPERTS}.w13_weight [8, 96, 64] is filled by no tensor",
    ),
    (
        _without(f"{EXPERTS}.0.down_proj.weight", f"{EXPERTS}.7.down_proj.weight"),
        f"shard 0.w2, 7.w2 of parameter {EXPERTS}.w2_weight [8, 64, 48] is filled by no tensor",
    ),
    (
        _with(f"{EXPERTS}.3.gate_proj.weight", torch.zeros(48, 60)),
        f"tensor {EXPERTS}.3.gate_proj.weight [48, 60] does not fit parameter "
        f"{EXPERTS}.w13_weight [8, 96, 64] shard 3.w1",
    ),
    (
        _with(f"{EXPERTS}.8.down_proj.weight", torch.zeros(64, 48)),
        "shard 8.w2 (rule experts): expert 8 of a layer with 8 experts",
    ),
    (
        _with(f"{EXPERTS}.0.other_proj.weight", torch.zeros(64, 48)),
        f"tensor {EXPERTS}.0.other_proj.weight belongs to no parameter",
    ),
    (
        _with(f"{EXPERTS}.0.gate_proj.scales", torch.zeros(48)),
        f"tensor {EXPERTS}.0.gate_proj.scales belongs to no parameter",
    ),
]


@pytest.mark.parametrize(("change", "message"), MISFITS)
def test_a_checkpoint_that_does_not_fit_is_refused(
    change: Callable[[Tensors], Tensors], message: str, tmp_path: Path
) -> None:
    folder = write_checkpoint("qwen3-moe", tmp_path)
    _rewrite(folder, change)
    with pytest.raises(WeightLoadError, match=re.escape(message)):
        load_model(folder)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((7, 96, 64), "shard 7.w1, 7.w3 of parameter"),
        ((9, 96, 64), "shard 8.w3 (rule experts): expert 8 of a layer with 8 experts"),
        ((8, 95, 64), "[47, 64] does not fit"),
        ((8, 96, 60), "[48, 60] does not fit"),
        ((96, 64), f"tensor {EXPERTS}.gate_up_proj belongs to no parameter"),
    ],
)
def test_a_tensor_of_all_experts_that_does_not_fit_is_refused(
    shape: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    build_model("qwen3-moe").save_pretrained(tmp_path, save_original_format=False)
    _rewrite(tmp_path, _with(f"{EXPERTS}.gate_up_proj", torch.zeros(shape)))
    with pytest.raises(WeightLoadError, match=re.escape(message)):
        load_model(tmp_path)


def test_names_of_experts() -> None:
    names = ExpertNames(gate="w1", up="w3", down="w2")
    assert names.place("l.experts.12.w3.weight") == (
        "l.experts.w13_weight",
        ExpertShard(12, "w3"),
    )
    assert names.place("experts.0.w2.bias") == ("experts.w2_weight_bias", ExpertShard(0, "w2"))
    assert names.place("l.experts.0.w1.weight_scale_inv") == (
        "l.experts.w13_weight_scale_inv",
        ExpertShard(0, "w1"),
    )
    for other in ("l.shared_experts.0.w1.weight", "l.experts.w1.weight", "l.experts.0.w4.weight"):
        assert names.place(other) is None
    assert WeightMap().experts is None


def test_all_experts_are_split_into_views_in_order() -> None:
    fused = torch.arange(2 * 6 * 4.0).view(2, 6, 4)
    parts = dict(ExpertNames().split("l.experts.gate_up_proj", fused))
    assert list(parts) == [
        f"l.experts.{expert}.{part}.weight"
        for expert in (0, 1)
        for part in ("gate_proj", "up_proj")
    ]
    assert torch.equal(parts["l.experts.1.up_proj.weight"], fused[1, 3:])
    assert parts["l.experts.0.gate_proj.weight"].data_ptr() == fused.data_ptr()
    down = dict(ExpertNames().split("l.experts.down_proj.weight", fused))
    assert torch.equal(down["l.experts.1.down_proj.weight"], fused[1])
    passed = dict(ExpertNames().split("l.mlp.down_proj.weight", fused))
    assert passed["l.mlp.down_proj.weight"] is fused


def test_more_choices_than_experts_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint("olmoe", tmp_path)
    config = folder / "config.json"
    text = config.read_text()
    assert '"num_experts_per_tok": 3' in text
    config.write_text(text.replace('"num_experts_per_tok": 3', '"num_experts_per_tok": 9'))
    with pytest.raises(ConfigError, match="num_experts_per_tok=9 must be between 1 and .* 8"):
        load_model(folder)


# Tensor parallel (every expert cut) and expert parallel (experts dealt out), with and without a shared expert.
TWO_RANKS = ("mixtral", "qwen3-moe-mixed", "qwen2-moe", "olmoe")


@pytest.mark.parametrize("ep_size", [1, 2])
def test_two_ranks_compute_what_the_reference_does(ep_size: int, tmp_path: Path) -> None:
    assert_two_ranks_agree(TWO_RANKS, TOKENS[0].tolist(), ep_size, tmp_path)


def test_every_case_is_among_the_tiny_models() -> None:
    assert MOE_CASES.items() <= CASES.items()
    assert not any(case.is_fallback for case in MOE_CASES.values())
