"""The plain decoder of `sglang.verify.references` computes what its relatives in transformers compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sglang.verify.reference import ReferenceModel
from sglang.verify.references import REFERENCES, build_reference, find_reference
from sglang.verify.references.decoder import Decoder, Names, Rope, Spec, alibi_slopes
from sglang.verify.tiny import CONFIG_FOLDER, randomise, tiny_config, write_tiny

TOKENS = torch.randint(3, 512, (1, 40), generator=torch.Generator().manual_seed(0))
SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}


def rope(kind: str = "default", **params: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **params}}


def spec(**switches: Any) -> Spec:
    sizes = {
        "vocab_size": 512,
        "width": 64,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "mlp_width": 96,
        "rope": Rope(10000.0, 16),
    }
    return Spec(**{**sizes, **switches})


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MULTIPLIERS = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.11,
    "logits_scaling": 0.5,
}
# class of transformers, keys of its config, switches of the plain decoder
RELATIVES = {
    "llama": ("Llama", {}, {}),
    "tied": ("Llama", {"tie_word_embeddings": True}, {"tied": True}),
    "biases": (
        "Llama",
        {"attention_bias": True, "mlp_bias": True},
        {"qkv_bias": True, "o_bias": True, "mlp_bias": True},
    ),
    "head-dim": ("Llama", {"head_dim": 24}, {"head_dim": 24, "rope": Rope(10000.0, 24)}),
    "llama3": (
        "Llama",
        rope("llama3", **LLAMA3),
        {"rope": Rope(10000.0, 16, scaling={"rope_type": "llama3", **LLAMA3})},
    ),
    "dynamic": (
        "Llama",
        {"max_position_embeddings": 16, **rope("dynamic", factor=2.0)},
        {"rope": Rope(10000.0, 16, False, {"rope_type": "dynamic", "factor": 2.0}, 16)},
    ),
    "qkv-bias": ("Qwen2", {}, {"qkv_bias": True}),
    "interleaved-half": (
        "Glm",
        {"head_dim": 16, "attention_bias": True, **rope(partial_rotary_factor=0.5)},
        {
            "qkv_bias": True,
            "rope": Rope(10000.0, 8, interleaved=True),
            "names": Names(gate_up="mlp.gate_up_proj"),
            "eps": 1.5625e-07,
        },
    ),
    "multipliers": (
        "Granite",
        MULTIPLIERS,
        {
            "embed_scale": 12.0,
            "residual_scale": 0.22,
            "score_scale": 0.11,
            "logit_scale": 2.0,
        },
    ),
    "layer-norm": (
        "StableLm",
        {"use_qkv_bias": True, **rope(partial_rotary_factor=0.25)},
        {"norm": "layer", "qkv_bias": True, "rope": Rope(10000.0, 4), "eps": 1e-5},
    ),
    "parallel": (
        "StableLm",
        {"use_parallel_residual": True, **rope(partial_rotary_factor=0.5)},
        {"norm": "layer", "parallel": True, "rope": Rope(10000.0, 8), "eps": 1e-5},
    ),
}


@pytest.mark.parametrize("name", RELATIVES)
def test_equals_its_relative_in_transformers(name: str) -> None:
    family, keys, switches = RELATIVES[name]
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **keys})
    relative = getattr(transformers, f"{family}ForCausalLM")._from_config(
        config, attn_implementation="eager", dtype=torch.float32
    )
    randomise(relative, seed=1)
    decoder = Decoder(spec(**switches))
    tensors = relative.state_dict()
    if decoder.spec.tied:
        tensors.pop("lm_head.weight")
    decoder.load_state_dict(tensors)
    with torch.inference_mode():
        theirs, ours = relative.eval()(TOKENS, use_cache=False).logits, decoder(TOKENS)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("num_heads", [4, 6, 8, 40])
def test_alibi_slopes_are_those_of_bloom(num_heads: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    mask = torch.ones(1, 2)
    slopes = build_alibi_tensor(mask, num_heads, torch.float32)[:, 0, 1]
    assert torch.allclose(slopes, torch.tensor(alibi_slopes(num_heads)))


def test_grouped_layout_is_a_permutation_of_the_plain_one() -> None:
    """q, k, v fused group by group, against the same rows in three matrices."""
    plain, fused = Decoder(spec()), Decoder(spec(names=Names(qkv="self_attn.w"), grouped_qkv=True))
    randomise(plain, seed=2)
    tensors = plain.state_dict()
    for layer in range(2):
        parts = [tensors.pop(f"model.layers.{layer}.self_attn.{x}_proj.weight") for x in "qkv"]
        q, k, v = (part.view(2, -1, 64) for part in parts)  # [kv heads, rows of the group, width]
        rows = torch.cat([q, k, v], dim=1).flatten(0, 1)
        tensors[f"model.layers.{layer}.self_attn.w.weight"] = rows
    fused.load_state_dict(tensors)
    assert torch.allclose(plain(TOKENS), fused(TOKENS), atol=1e-5)


def test_every_reference_is_named_by_a_stored_configuration() -> None:
    """One configuration per function; further architectures of a function share it."""
    stored = [json.loads(path.read_text()) for path in sorted(CONFIG_FOLDER.glob("*.json"))]
    functions = {REFERENCES[a] for raw in stored for a in raw["architectures"] if a in REFERENCES}
    assert functions == set(REFERENCES.values())
    for name in REFERENCES:
        assert find_reference({"architectures": [name]}) is not None, name


def test_generates_greedily_and_is_random_everywhere(tmp_path: Path) -> None:
    folder = write_tiny("chatglm", tmp_path)
    reference = ReferenceModel(str(folder))
    assert reference.is_own and reference.vocab_size == 512
    names = set(reference.model.state_dict())
    assert "transformer.encoder.layers.1.self_attention.query_key_value.bias" in names
    assert all(tensor.std() > 0.01 for tensor in reference.model.state_dict().values())
    prompt = TOKENS[0, :9].tolist()
    expected = reference.greedy(prompt, 5).output_ids
    generated = reference.model.generate(torch.tensor([prompt]), max_new_tokens=5, do_sample=False)
    assert generated.tolist() == [[*prompt, *expected]]


def test_a_tensor_of_another_name_is_refused(tmp_path: Path) -> None:
    folder = write_tiny("xverse", tmp_path)
    raw = {**tiny_config("xverse"), "num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(RuntimeError, match=r"Missing key.*model\.layers\.2"):
        ReferenceModel(str(folder))
    with pytest.raises(ValueError, match="no reference of our own"):
        build_reference({"architectures": ["LlamaForCausalLM"]})
