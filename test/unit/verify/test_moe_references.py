"""The plain decoder with experts against its relatives in transformers, and what each of its switches changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers.models.deepseek_ocr2.modeling_deepseek_ocr2 import DeepseekOcr2TextModel

from sglang.verify.references.moe import deepseek, sizes
from sglang.verify.references.moe_decoder import MoEDecoder, MoENames, MoESpec
from sglang.verify.tiny import randomise

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
}
IDS = torch.randint(96, (1, 24), generator=torch.Generator().manual_seed(0))


def relative(class_name: str, config: Any) -> Any:
    model = getattr(transformers, class_name)._from_config(config, attn_implementation="eager")
    randomise(model, seed=1)
    return model.eval()


def saved(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """The tensors under their names on disk, which stay the same from release to release."""
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def split(tensors: dict[str, torch.Tensor], name: str, *parts: str) -> None:
    """Replace a tensor of all experts by one for each and each of `parts`."""
    prefix = name.rpartition(".experts.")[0] or name.rsplit(".", 2)[0]
    for number, matrix in enumerate(tensors.pop(name)):
        for part, value in zip(parts, matrix.chunk(len(parts)), strict=True):
            tensors[f"{prefix}.experts.{number}.{part}.weight"] = value


@torch.inference_mode()
def assert_equal(ours: MoEDecoder, tensors: dict[str, torch.Tensor], expected: Any) -> None:
    ours.load_state_dict(tensors)
    torch.testing.assert_close(ours(IDS), expected, rtol=0, atol=2e-5)


@torch.inference_mode()
def test_granite_moe_shared(tmp_path: Path) -> None:
    scales = {
        "embedding_multiplier": 6.0,
        "residual_multiplier": 0.3,
        "attention_multiplier": 0.11,
        "logits_scaling": 4.0,
    }
    config = transformers.GraniteMoeSharedConfig(
        **SIZES,
        **scales,
        num_local_experts=8,
        num_experts_per_tok=3,
        shared_intermediate_size=48,
    )
    theirs = relative("GraniteMoeSharedForCausalLM", config)
    spec = sizes(
        SIZES,
        num_experts=8,
        top_k=3,
        expert_width=80,
        shared_width=48,
        renormalize=True,
        embed_scale=6.0,
        residual_scale=0.3,
        score_scale=0.11,
        logit_scale=0.25,
    )
    tensors = {
        name.replace("block_sparse_moe.router.layer", "mlp.gate").replace(
            "block_sparse_moe", "mlp"
        ): t
        for name, t in saved(theirs, tmp_path).items()
    }
    for layer in (f"model.layers.{i}" for i in range(3)):
        split(tensors, f"{layer}.mlp.input_linear.weight", "gate_proj", "up_proj")
        split(tensors, f"{layer}.mlp.output_linear.weight", "down_proj")
        shared = f"{layer}.mlp.shared_experts"
        gate, up = tensors.pop(f"{layer}.shared_mlp.input_linear.weight").chunk(2)
        tensors[f"{shared}.gate_proj.weight"], tensors[f"{shared}.up_proj.weight"] = gate, up
        down = tensors.pop(f"{layer}.shared_mlp.output_linear.weight")
        tensors[f"{shared}.down_proj.weight"] = down
    assert_equal(MoEDecoder(spec), tensors, theirs(IDS).logits)


@torch.inference_mode()
@pytest.mark.parametrize("num_groups", [1, 4])
def test_glm4_moe(num_groups: int, tmp_path: Path) -> None:
    config = transformers.Glm4MoeConfig(
        **SIZES,
        head_dim=24,
        attention_bias=True,
        use_qk_norm=True,
        moe_intermediate_size=48,
        n_routed_experts=16,
        num_experts_per_tok=3,
        n_shared_experts=2,
        first_k_dense_replace=1,
        n_group=num_groups,
        topk_group=min(2, num_groups),
        routed_scaling_factor=2.5,
        norm_topk_prob=True,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        },
    )
    theirs = relative("Glm4MoeForCausalLM", config)
    spec = sizes(
        {**SIZES, "head_dim": 24},
        rotary_dim=12,
        qkv_bias=True,
        qk_norm=True,
        num_experts=16,
        top_k=3,
        expert_width=48,
        shared_width=96,
        first_dense=1,
        scores="sigmoid",
        has_correction=True,
        num_groups=num_groups,
        top_groups=min(2, num_groups),
        renormalize=True,
        routed_scale=2.5,
    )
    assert_equal(MoEDecoder(spec), saved(theirs, tmp_path), theirs(IDS).logits)


@torch.inference_mode()
def test_deepseek_ocr2_text(tmp_path: Path) -> None:
    moe = {
        "n_routed_experts": 8,
        "n_shared_experts": 2,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "routed_scaling_factor": 1.7,
        "attention_bias": True,
    }
    config = transformers.DeepseekOcr2TextConfig(
        **SIZES, **moe, mlp_layer_types=["dense", "sparse", "sparse"]
    )
    theirs = DeepseekOcr2TextModel._from_config(config, attn_implementation="eager").eval()
    randomise(theirs, seed=1)
    raw = {**SIZES, **moe, "first_k_dense_replace": 1, "norm_topk_prob": False}
    tensors = {f"model.{name}": tensor for name, tensor in saved(theirs, tmp_path).items()}
    for name in [name for name in tensors if name.endswith("experts.gate_up_proj")]:
        split(tensors, name, "gate_proj", "up_proj")
        split(tensors, name.replace("gate_up_proj", "down_proj"), "down_proj")
    head = torch.randn(96, 64, generator=torch.Generator().manual_seed(3)) * 0.1
    hidden = theirs(input_ids=IDS, use_cache=False).last_hidden_state
    assert_equal(deepseek(raw), {**tensors, "lm_head.weight": head}, hidden @ head.T)


@torch.inference_mode()
def test_gemma2_has_the_norms_and_caps_of_grok(tmp_path: Path) -> None:
    config = transformers.Gemma2Config(
        **SIZES,
        head_dim=16,
        query_pre_attn_scalar=12,
        attn_logit_softcapping=1.0,
        final_logit_softcapping=1.5,
        layer_types=["full_attention"] * 3,
        tie_word_embeddings=True,
    )
    theirs = relative("Gemma2ForCausalLM", config)
    spec = sizes(
        {**SIZES, "tie_word_embeddings": True},
        names=MoENames(
            mlp_norm="pre_feedforward_layernorm",
            after_attn="post_attention_layernorm",
            after_mlp="post_feedforward_layernorm",
        ),
        num_experts=1,
        top_k=1,
        expert_width=1,
        first_dense=3,
        act=lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        embed_scale=8.0,
        score_scale=12**-0.5,
        score_cap=1.0,
        logit_cap=1.5,
    )
    tensors = {
        name: tensor + 1.0 if "norm" in name else tensor
        for name, tensor in saved(theirs, tmp_path).items()
    }
    assert_equal(MoEDecoder(spec), tensors, theirs(IDS).logits)


@torch.inference_mode()
def test_the_rest_of_the_switches_do_something() -> None:
    """What no relative has: a cap of the router, a normed head, weights that are not renormalised, layers without experts."""
    spec = MoESpec(
        vocab_size=96,
        width=64,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        mlp_width=80,
        num_experts=8,
        top_k=3,
        expert_width=80,
    )
    plain = MoEDecoder(spec).eval()
    randomise(plain, seed=2)
    tensors = plain.state_dict()
    for switch in ({"router_cap": 0.5}, {"normed_head": True}, {"renormalize": True}, {"top_k": 2}):
        changed = MoEDecoder(dataclasses.replace(spec, **switch)).eval()
        changed.load_state_dict(tensors)
        assert (changed(IDS) - plain(IDS)).abs().max() > 1e-2, switch
    dense = MoEDecoder(dataclasses.replace(spec, expert_period=2))
    assert [f"model.layers.{i}.mlp.gate.weight" in dense.state_dict() for i in range(3)] == [
        True,
        False,
        True,
    ]
