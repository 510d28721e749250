"""More families with experts: their tiny configurations show what they are there for, and two ranks compute what one does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from models.configs import CASES
from models.configs_moe_b import HAS_SWIGLU_LIMIT, MOE_B_CASES
from models.forward import HandRunner, Share, assert_close, load_model
from models.tiny import build_model, write_checkpoint
from models.two_ranks import assert_two_ranks_agree
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.models.common.weights import WeightLoadError
from sglang.srt.models.registry import ModelRegistry
from sglang.srt.utils.errors import ConfigError
from sglang.verify.reference import ReferenceModel

TABLE = Path(__file__).parents[3] / "docs/supported_models/text_generation/generative_models.md"
TOKENS = torch.randint(3, 512, (1, 40), generator=torch.Generator().manual_seed(0))


def _plain_rope(**params: float) -> dict[str, Any]:
    """Rotation of whole heads without scaling."""
    whole = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    return {"rope_parameters": {**whole, **params}}


# The router's weight, bias and correction bias on disk.
ROUTER = re.compile(
    r"\.(mlp|feed_forward|block_sparse_moe)\.(gate|router)(\.wg|\.gate)?\.(weight|bias)$|correction_bias$|expert_bias$"
)

# case, and what leaves one of its features out
FEATURES: list[tuple[str, dict[str, Any]]] = [
    ("gpt-oss", {"sliding_window": 256}),
    ("gpt-oss", _plain_rope(rope_theta=150000.0)),
    ("glm4-moe", {"routed_scaling_factor": 1.0}),
    ("glm4-moe", {"norm_topk_prob": False}),
    ("glm4-moe", _plain_rope()),
    ("glm4-moe-groups", {"n_group": 1, "topk_group": 1}),
    ("glm4-moe-groups", {"norm_topk_prob": True}),
    ("minimax-m2", _plain_rope()),
    ("llama4", {"attention_chunk_size": 256}),
    ("llama4", {"attn_temperature_tuning": False}),
    ("llama4", {"use_qk_norm": False}),
    ("llama4", {"no_rope_layers": [1, 1, 1, 1]}),
    ("llama4", _plain_rope(rope_theta=500000.0)),
    ("llama4-no-norm", {"num_experts_per_tok": 1}),
    ("hunyuan-moe", _plain_rope()),
    ("hunyuan-moe-lists", {"moe_topk": [2, 1]}),
    ("exaone-moe", {"routed_scaling_factor": 1.0}),
    ("exaone-moe", {"norm_topk_prob": False}),
    ("exaone-moe", {"layer_types": ["full_attention"] * 4}),
    ("exaone-moe-groups", {"n_group": 1, "topk_group": 1}),
    ("afmoe", {"route_scale": 1.0}),
    ("afmoe", {"mup_enabled": False}),
    ("afmoe", {"sliding_window": 256}),
    ("afmoe", {"layer_types": ["sliding_attention"] * 4}),
]
if HAS_SWIGLU_LIMIT:
    FEATURES += [("gpt-oss", {"swiglu_limit": 7.0}), ("gpt-oss", {"swiglu_alpha": 1.702})]

# case, and names on disk that its architecture's published checkpoints have
PUBLISHED: dict[str, tuple[str, ...]] = {
    "gpt-oss": (
        "model.layers.1.self_attn.sinks",
        "model.layers.1.self_attn.o_proj.bias",
        "model.layers.1.mlp.router.bias",
        "model.layers.1.mlp.experts.gate_up_proj",
        "model.layers.1.mlp.experts.gate_up_proj_bias",
        "model.layers.1.mlp.experts.down_proj_bias",
    ),
    "glm4-moe": (
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.1.self_attn.k_norm.weight",
        "model.layers.1.mlp.gate.weight",
        "model.layers.1.mlp.gate.e_score_correction_bias",
        "model.layers.1.mlp.experts.7.gate_proj.weight",
        "model.layers.1.mlp.shared_experts.up_proj.weight",
    ),
    "minimax-m2": (
        "model.layers.1.self_attn.q_norm.weight",
        "model.layers.1.block_sparse_moe.gate.weight",
        "model.layers.1.block_sparse_moe.e_score_correction_bias",
        "model.layers.1.block_sparse_moe.experts.7.w3.weight",
    ),
    "llama4": (
        "model.layers.0.feed_forward.gate_proj.weight",
        "model.layers.1.feed_forward.router.weight",
        "model.layers.1.feed_forward.experts.gate_up_proj",
        "model.layers.1.feed_forward.experts.down_proj",
        "model.layers.1.feed_forward.shared_expert.up_proj.weight",
    ),
    "hunyuan-moe": (
        "model.layers.1.self_attn.query_layernorm.weight",
        "model.layers.1.mlp.gate.wg.weight",
        "model.layers.1.mlp.experts.7.up_proj.weight",
        "model.layers.1.mlp.shared_mlp.down_proj.weight",
    ),
    "afmoe": (
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.1.self_attn.gate_proj.weight",
        "model.layers.1.mlp.router.gate.weight",
        "model.layers.1.mlp.expert_bias",
        "model.layers.1.mlp.experts.7.gate_proj.weight",
        "model.layers.1.mlp.shared_experts.up_proj.weight",
    ),
    "exaone-moe": (
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.1.mlp.gate.weight",
        "model.layers.1.mlp.e_score_correction_bias",
        "model.layers.1.mlp.experts.7.gate_proj.weight",
        "model.layers.1.mlp.shared_experts.up_proj.weight",
    ),
}


@torch.inference_mode()
def _logits(name: str, **overrides: Any) -> torch.Tensor:
    return build_model(name, **overrides)(TOKENS, use_cache=False).logits[0].float()


@pytest.mark.parametrize(("name", "without"), FEATURES)
def test_a_feature_left_out_would_be_noticed(name: str, without: dict[str, Any]) -> None:
    """The reference itself, with the same weights, moves by a hundred times what the comparison allows."""
    with_feature = _logits(name)
    allowed = 1e-4 * max(1.0, with_feature.abs().max().item())
    assert (_logits(name, **without) - with_feature).abs().max().item() > 100 * allowed


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_checkpoints_have_the_published_names(name: str, tmp_path: Path) -> None:
    file = write_checkpoint(name, tmp_path) / "model.safetensors"
    with safe_open(file, framework="pt") as tensors:
        assert set(PUBLISHED[name]) <= set(tensors.keys())
    load_model(tmp_path)  # strict in both directions


# Tensor parallel (every expert cut) and expert parallel (experts dealt out).
TWO_RANKS = (
    "gpt-oss",
    "glm4-moe",
    "glm4-moe-groups",
    "minimax-m2",
    "llama4",
    "hunyuan-moe",
    "exaone-moe",
    "afmoe",
)


@pytest.mark.parametrize("ep_size", [1, 2])
def test_two_ranks_compute_what_the_reference_does(ep_size: int, tmp_path: Path) -> None:
    assert_two_ranks_agree(TWO_RANKS, TOKENS[0].tolist(), ep_size, tmp_path)


@pytest.mark.parametrize("name", ["glm4-moe", "minimax-m2", "exaone-moe"])
def test_the_correction_decides_who_is_chosen(name: str) -> None:
    with_correction = _logits(name)
    reference = build_model(name)
    biases = [b for key, b in reference.named_buffers() if key.endswith("correction_bias")]
    assert biases and all(bias.abs().min() > 0 for bias in biases), "the tiny checkpoint has them"
    with torch.inference_mode():
        for bias in biases:
            bias.zero_()
        without = reference(TOKENS, use_cache=False).logits[0]
    assert (without - with_correction).abs().max().item() > 0.01


@pytest.mark.parametrize("architecture", sorted({c.architecture for c in MOE_B_CASES.values()}))
def test_every_family_is_in_the_table(architecture: str) -> None:
    file = f"{ModelRegistry.models[architecture].__module__.rpartition('.')[2]}.py"
    (row,) = [line for line in TABLE.read_text().splitlines() if f"`{architecture}`" in line]
    assert f"`{file}`" in row
    for name, case in MOE_B_CASES.items():
        assert (f"`{name}`" in row) == (case.architecture == architecture)


def test_layers_that_predict_further_tokens_are_passed_over(tmp_path: Path) -> None:
    file = write_checkpoint("glm4-moe", tmp_path) / "model.safetensors"
    tensors = load_file(file)
    extra = {"model.layers.3.eh_proj.weight": torch.zeros(64, 128)}
    save_file({**tensors, **extra}, file, metadata={"format": "pt"})
    load_model(tmp_path)
    extra = {"model.layers.2.eh_proj.weight": torch.zeros(64, 128)}
    save_file({**tensors, **extra}, file, metadata={"format": "pt"})
    with pytest.raises(WeightLoadError, match="eh_proj.weight belongs to no parameter"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "name", ["gpt-oss", "glm4-moe", "minimax-m2", "llama4", "hunyuan-moe", "exaone-moe", "afmoe"]
)
def test_equal_scores_are_told_apart_as_the_reference_does(name: str, tmp_path: Path) -> None:
    """Experts two by two with one score for both; how many are chosen is odd, so that one of two must be."""
    file = write_checkpoint(name, tmp_path) / "model.safetensors"
    tensors = load_file(file)
    routers = [key for key in tensors if ROUTER.search(key)]
    assert routers
    for key in routers:
        tensors[key] = tensors[key][0::2].repeat_interleave(2, dim=0)
    save_file(tensors, file, metadata={"format": "pt"})
    reference = ReferenceModel(str(tmp_path))
    runner = HandRunner(load_model(tmp_path), tmp_path)
    (got,) = runner.step(ForwardMode.EXTEND, [Share(0, 0, TOKENS[0].tolist())])
    assert_close(got, reference.logits(TOKENS[0].tolist()), name)


# case, a key and a value that the file does not implement
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("gpt-oss", {"hidden_act": "gelu"}),
    ("minimax-m2", {"scoring_func": "softmax"}),
    ("minimax-m2", {"use_qk_norm": False}),
    ("minimax-m2", {"qk_norm_type": "per_head"}),
    ("minimax-m2", {"attn_type_list": [1, 0]}),
    ("minimax-m2", {"shared_intermediate_size": 32}),
    ("hunyuan-moe", {"use_cla": True}),
    ("hunyuan-moe", {"num_shared_expert": [1, 2]}),
    ("hunyuan-moe", {"moe_intermediate_size": [48, 64]}),
    ("hunyuan-moe", {"moe_layer_num_skipped": 1}),
    ("exaone-moe", {"hidden_act": "gelu"}),
    ("afmoe", {"score_func": "softmax"}),
    ("afmoe", {"route_norm": False}),
]


def test_chunks_without_a_width_are_refused(tmp_path: Path) -> None:
    path = write_checkpoint("llama4", tmp_path) / "config.json"
    config = {**json.loads(path.read_text()), "attention_chunk_size": None}
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="layer_types='chunked_attention'"):
        load_model(tmp_path)


@pytest.mark.parametrize(("name", "keys"), REFUSED)
def test_what_is_not_implemented_is_refused_by_name(
    name: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    folder = write_checkpoint(name, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **keys}))
    (key,) = keys
    with pytest.raises(ConfigError, match=f"does not implement {key}="):
        load_model(folder)


def test_the_published_spelling_of_exaone_is_served(tmp_path: Path) -> None:
    path = write_checkpoint("exaone-moe", tmp_path) / "config.json"
    path.write_text(path.read_text().replace("ExaoneMoeForCausalLM", "ExaoneMoEForCausalLM"))
    file = tmp_path / "model.safetensors"
    extra = {"mtp.layers.0.input_layernorm.weight": torch.zeros(64)}
    save_file({**load_file(file), **extra}, file, metadata={"format": "pt"})
    assert type(load_model(tmp_path)).__name__ == "ExaoneMoeForCausalLM"


def test_every_case_is_among_the_tiny_models() -> None:
    assert MOE_B_CASES.items() <= CASES.items()
    assert not any(case.is_fallback for case in MOE_B_CASES.values())
