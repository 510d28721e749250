"""More families with experts: what each feature changes, which names they read, what they refuse, and two ranks."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from models.configs import CASES
from models.configs_moe_more import MORE_MOE_CASES
from models.forward import load_model
from models.tiny import build_model, write_checkpoint
from models.two_ranks import assert_two_ranks_agree
from safetensors.torch import load_file, save_file

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.models.ernie4_moe import route_floored
from sglang.srt.models.grok import route_capped
from sglang.srt.models.phimoe import route_sparsemixer
from sglang.srt.utils.errors import ConfigError
from sglang.verify.references import build_reference
from sglang.verify.tiny import randomise

TOKENS = torch.randint(3, 512, (1, 40), generator=torch.Generator().manual_seed(0))

FEATURES: list[tuple[str, dict[str, Any]]] = [
    ("granitemoe", {"num_experts_per_tok": 2}),
    ("granitemoe", {"embedding_multiplier": 1.0}),
    ("granitemoe", {"residual_multiplier": 1.0}),
    ("granitemoe", {"attention_multiplier": 0.25}),
    ("granitemoe", {"logits_scaling": 1.0}),
    ("granitemoe-tied", {"attention_multiplier": 0.25}),
    ("granitemoe-shared", {"residual_multiplier": 1.0}),
    ("phimoe", {"router_jitter_noise": 0.01}),
    ("phimoe-window", {"sliding_window": None}),
    ("dbrx", {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 500000.0}}),
    ("ernie4_5-moe", {"moe_norm_min": 1e-12}),
    ("ernie4_5-moe", {"moe_k": 2}),
    ("deepseek", {"norm_topk_prob": True}),
    ("deepseek-renormalised", {"norm_topk_prob": False}),
    ("deepseek-renormalised", {"routed_scaling_factor": 1.0}),
    ("xverse-moe", {"norm_topk_prob": False}),
    ("xverse-moe", {"rope_theta": 10000.0}),
    ("xverse-moe-unnormed", {"norm_topk_prob": True}),
    ("grok-1", {"max_attn_value": 30.0}),
    ("grok-1", {"router_logit_softcapping": None}),
    ("grok-1", {"attn_output_multiplier": 0.25}),
    ("grok-1", {"embedding_multiplier_scale": 1.0}),
    ("grok-1", {"output_multiplier_scale": 1.0}),
    ("grok-1-mixtral-names", {"final_logit_softcapping": None}),
    ("bailing-moe", {"norm_head": False}),
    ("bailing-moe", {"norm_topk_prob": False}),
    ("bailing-moe-tied", {"norm_topk_prob": True}),
    ("bailing-moe-v2", {"partial_rotary_factor": 1.0}),
    ("bailing-moe-v2", {"score_function": "softmax"}),
    ("bailing-moe-v2", {"topk_group": 4}),
    ("bailing-moe-v2", {"routed_scaling_factor": 1.0}),
]


@torch.inference_mode()
def _logits(name: str, **overrides: Any) -> torch.Tensor:
    case = CASES[name]
    if case.config_class:
        return build_model(name, **overrides)(TOKENS, use_cache=False).logits[0].float()
    raw = {**case.keys, "architectures": [case.architecture], **overrides}
    model = build_reference(raw)
    randomise(model, seed=zlib.crc32(name.encode()))
    return model(TOKENS)[0]


@pytest.mark.parametrize(("name", "without"), FEATURES)
def test_a_feature_left_out_would_be_noticed(name: str, without: dict[str, Any]) -> None:
    """The reference itself, with the same weights, moves by thirty times what the comparison allows."""
    with_feature = _logits(name)
    allowed = 1e-4 * max(1.0, with_feature.abs().max().item())
    assert (_logits(name, **without) - with_feature).abs().max().item() > 30 * allowed


# Case, and names on disk that only this family has.
NAMES = [
    ("granitemoe", "model.layers.1.block_sparse_moe.input_linear.weight", [8, 192, 64]),
    ("granitemoe", "model.layers.1.block_sparse_moe.router.layer.weight", [8, 64]),
    ("granitemoe-shared", "model.layers.1.shared_mlp.output_linear.weight", [64, 80]),
    ("phimoe", "model.layers.1.block_sparse_moe.experts.7.w3.weight", [96, 64]),
    ("phimoe", "lm_head.bias", [512]),
    ("dbrx", "transformer.blocks.1.ffn.experts.mlp.v1", [8 * 48, 64]),
    ("dbrx", "transformer.blocks.1.norm_attn_norm.attn.Wqkv.weight", [128, 64]),
    ("ernie4_5-moe", "model.layers.1.mlp.moe_statics.e_score_correction_bias", [1, 8]),
    ("ernie4_5-moe", "model.layers.1.mlp.shared_experts.down_proj.weight", [64, 96]),
    ("deepseek", "model.layers.1.mlp.shared_experts.gate_proj.weight", [96, 64]),
    ("xverse-moe", "model.layers.0.mlp.router.weight", [8, 64]),
    ("grok-1", "model.layers.1.moe_block.experts.7.linear_1.weight", [64, 96]),
    ("grok-1", "model.layers.1.post_moe_norm.scale", [64]),
    ("grok-1", "model.layers.1.attn.q_proj.weight", [64, 64]),
    ("grok-1-mixtral-names", "model.layers.1.block_sparse_moe.experts.3.w2.weight", [64, 96]),
    ("bailing-moe", "model.layers.1.attention.query_key_value.bias", [8 * 24]),
    ("bailing-moe", "model.word_embeddings.weight", [512, 64]),
    ("bailing-moe-v2", "model.layers.1.mlp.gate.expert_bias", [16]),
    ("bailing-moe-v2", "model.layers.1.attention.key_layernorm.weight", [24]),
]


@pytest.mark.parametrize(("name", "tensor", "shape"), NAMES)
def test_checkpoints_have_the_published_names(
    name: str, tensor: str, shape: list[int], tmp_path: Path
) -> None:
    tensors = load_file(write_checkpoint(name, tmp_path) / "model.safetensors")
    assert list(tensors[tensor].shape) == shape


def _edit(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("phimoe", {"num_experts_per_tok": 3}, "num_experts_per_tok=2, not 3"),
        (
            "dbrx",
            {"ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 8, "moe_top_k": 3}},
            "moe_normalize_expert_weights 1 or None, not 'silu' and 2.0",
        ),
        ("ernie4_5-moe", {"tie_word_embeddings": True}, "use_bias=True with tie_word_embeddings"),
        ("grok-1", {"residual_moe": True}, "does not implement residual_moe"),
        ("deepseek", {"scoring_func": "sigmoid"}, "scoring_func='softmax', not 'sigmoid'"),
    ],
)
def test_settings_that_nobody_implements_are_refused(
    name: str, keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_checkpoint(name, tmp_path)
    if "ffn_config" in keys:
        keys = {"ffn_config": {**keys["ffn_config"], "moe_normalize_expert_weights": 2.0}}
    _edit(folder, **keys)
    with pytest.raises(ConfigError, match=message):
        load_model(folder)


def test_phimoe_has_two_spellings(tmp_path: Path) -> None:
    folder = write_checkpoint("phimoe", tmp_path)
    _edit(folder, architectures=["PhiMoEForCausalLM"])
    assert ModelConfig(str(folder)).architectures == ("PhimoeForCausalLM",)
    assert type(load_model(folder)).__name__ == "PhimoeForCausalLM"


def test_grok_is_known_under_the_model_type_of_mixtral(tmp_path: Path) -> None:
    """As one published conversion has it. The router's cap is a setting of later models."""
    folder = write_checkpoint("grok-1-mixtral-names", tmp_path)
    config = ModelConfig(str(folder)).hf_config
    assert (config.model_type, config.num_experts) == ("grok-1", 4)
    assert (config.router_logit_softcapping, config.hidden_act) == (None, "gelu_pytorch_tanh")
    _edit(folder, architectures=["MixtralForCausalLM"])
    assert ModelConfig(str(folder)).hf_config.model_type == "mixtral"


def test_a_draft_model_of_ernie_is_left_out(tmp_path: Path) -> None:
    folder = write_checkpoint("ernie4_5-moe", tmp_path)
    file = folder / "model.safetensors"
    extra = {"model.mtp_block.0.self_attn.q_proj.weight": torch.zeros(4, 4)}
    save_file({**load_file(file), **extra}, file, metadata={"format": "pt"})
    load_model(folder)


def test_sparsemixer() -> None:
    """By hand: of 4, 3.9 and 1 the first two are near (2.5 % apart), then 3.9 is alone."""
    logits = torch.tensor([[1.0, 4.0, 3.9]])
    weights, ids = route_sparsemixer(logits, logits, 2, False, tolerance=0.1)
    assert ids.tolist() == [[1, 2]]
    first = 1 / (1 + torch.tensor(-0.1).exp())
    assert torch.allclose(weights, torch.tensor([[float(first), 1.0]]))
    weights, _ = route_sparsemixer(logits, logits, 2, False, tolerance=0.01)
    assert weights.tolist() == [[1.0, 1.0]]


def test_correction_chooses_and_floor_divides() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    correction = torch.tensor([0.0, 0.0, 1.0])
    weights, ids = route_floored(logits, logits, 2, True, correction=correction, floor=1e-12)
    assert ids.tolist() == [[2, 0]]
    assert torch.allclose(weights, torch.tensor([[2 / 7, 5 / 7]]))
    weights, _ = route_floored(logits, logits, 2, True, correction=correction, floor=1.0)
    assert torch.allclose(weights, torch.tensor([[0.2, 0.5]]))


def test_capped_router_keeps_the_share_of_all_experts() -> None:
    logits = torch.tensor([[100.0, 100.0, -100.0]])
    weights, ids = route_capped(logits, logits, 2, False, cap=0.5)
    expected = torch.tensor([0.5, 0.5, -0.5]).softmax(dim=0)[:2]
    assert sorted(ids[0].tolist()) == [0, 1]
    assert torch.allclose(weights[0], expected)


# Every way to store or choose experts that the families above do not have, cut and dealt out.
TWO_RANKS = ("granitemoe-shared", "phimoe", "dbrx", "ernie4_5-moe", "grok-1", "bailing-moe-v2")


@pytest.mark.parametrize("ep_size", [1, 2])
def test_two_ranks_compute_what_the_reference_does(ep_size: int, tmp_path: Path) -> None:
    assert_two_ranks_agree(TWO_RANKS, TOKENS[0].tolist(), ep_size, tmp_path)


def test_every_case_is_among_the_tiny_models() -> None:
    assert MORE_MOE_CASES.items() <= CASES.items()
    assert not any(case.is_fallback for case in MORE_MOE_CASES.values())
