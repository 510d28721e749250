"""Families whose checkpoints bring code: read without it, and what their configurations decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models.forward import HandRunner, Share, load_model
from safetensors.torch import load_file, save_file

from sglang.srt.configs.hf_config import read_facts
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.configs.published import PUBLISHED, usual_keys
from sglang.srt.layers.attention.torch_ops import AttendOptions, attend
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.models.common.alibi import alibi_slopes
from sglang.srt.utils.errors import ConfigError
from sglang.srt.utils.hf_transformers_utils import get_config, get_tokenizer
from sglang.verify.reference import ReferenceModel
from sglang.verify.tiny import tiny_config, write_config, write_tiny

TOKENS = list(range(100, 124))
FAMILIES = (
    "chatglm internlm2 internlm3 baichuan qwen exaone minicpm xverse mimo orion teleflm solar phi3_small"
).split()


def write(folder: Path, stored: str, **keys: Any) -> Path:
    return write_config({**tiny_config(stored), **keys}, folder)


def our_logits(folder: Path) -> torch.Tensor:
    runner = HandRunner(load_model(folder, dtype="float32"), folder)
    return runner.step(ForwardMode.EXTEND, [Share(0, 0, TOKENS)])[0]


@pytest.mark.parametrize(
    "stored", ["chatglm", "internlm2", "baichuan", "qwen", "exaone", "minicpm", "solar"]
)
def test_code_of_a_checkpoint_is_not_wanted(tmp_path: Path, stored: str) -> None:
    """`auto_map` names Python files that are not even there."""
    raw = {**tiny_config(stored), "auto_map": {"AutoConfig": "configuration_x.XConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    model_config = ModelConfig(str(tmp_path))
    assert model_config.hf_config.model_type == raw["model_type"]
    assert model_config.vocab_size == 512 and model_config.context_len == 256
    assert model_config.facts == read_facts(raw)


def test_usual_keys_stay_what_they_are() -> None:
    for stored in FAMILIES:
        written = tiny_config(stored)
        assert written["model_type"] in PUBLISHED
        raw = usual_keys(written)
        assert usual_keys(raw) == raw
    assert usual_keys({"model_type": "llama", "seq_length": 7}) == {
        "model_type": "llama",
        "seq_length": 7,
    }


def test_chatglm_spells_its_facts_in_its_own_way() -> None:
    facts = read_facts({**tiny_config("chatglm"), "rope_ratio": 500})
    assert (facts.num_hidden_layers, facts.intermediate_size, facts.head_dim) == (2, 96, 24)
    assert (facts.num_attention_heads, facts.num_key_value_heads) == (4, 2)
    assert facts.rope is not None
    assert (facts.rope.theta, facts.rope.partial_rotary_factor) == (5_000_000.0, 0.5)
    assert read_facts({**tiny_config("chatglm"), "multi_query_attention": False}).head_dim == 24


def test_qwen_ends_where_its_angles_would_change() -> None:
    keys = {"seq_length": 64, "max_position_embeddings": 256}
    assert read_facts({**tiny_config("qwen"), **keys}).derived_context_len == 64
    free = {**tiny_config("qwen"), **keys, "use_dynamic_ntk": False}
    assert read_facts(free).derived_context_len == 256


def test_a_longer_context_moves_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN", "1")
    folder = write(tmp_path, "qwen", seq_length=64)
    model_config = ModelConfig(str(folder), context_length=200)
    assert model_config.facts.max_position_embeddings == 200


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"max_position_embeddings": 4096, "hidden_size": 64}, "ROPE"),
        ({"model_max_length": 4096, "hidden_size": 4096}, "ROPE"),
        ({"model_max_length": 4096, "hidden_size": 5120}, "ALIBI"),
    ],
)
def test_baichuan_7b_and_13b_are_told_apart(keys: dict[str, Any], expected: str) -> None:
    raw = usual_keys({"model_type": "baichuan", "vocab_size": 125696, **keys})
    assert (raw["position_embedding"], raw["norm_head"]) == (expected, True)
    assert raw["max_position_embeddings"] == 4096


def test_rows_of_baichuans_head_have_length_one(tmp_path: Path) -> None:
    model = load_model(write_tiny("baichuan", tmp_path), dtype="float32")
    assert torch.allclose(model.lm_head.weight[:512].norm(dim=1), torch.ones(512))


def test_alibi_is_a_penalty_of_the_distance() -> None:
    """In every shape that `attend` takes, against the definition."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 7, heads, 8, generator=generator) for heads in (6, 3, 3))
    slopes = alibi_slopes(6)
    options = AttendOptions(0.3, alibi_slopes=slopes)
    places = torch.arange(7)
    wide_k, wide_v = (t.repeat_interleave(2, dim=2) for t in (k, v))
    scores = torch.einsum("bnhd,bmhd->bhnm", q, wide_k) * 0.3
    scores = scores - slopes[:, None, None] * (places[:, None] - places)
    visible = places[:, None] >= places
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    expected = torch.einsum("bhnm,bmhd->bnhd", weights, wide_v)
    causal = attend(q, k, v, options, is_causal=True)
    masked = attend(q, k, v, options, mask=visible[None])
    last = attend(q[:, -1:], k, v, options)
    assert torch.allclose(causal, expected, atol=1e-6)
    assert torch.allclose(masked, expected, atol=1e-6)
    assert torch.allclose(last, expected[:, -1:], atol=1e-6)


def test_draft_layers_of_mimo_are_left_out(tmp_path: Path) -> None:
    folder = write_tiny("mimo", tmp_path)
    expected = our_logits(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.mtp_layers.0.input_proj.weight"] = torch.ones(64, 128)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(our_logits(folder), expected)


def test_dummy_tokens_of_phi3_small_are_impossible(tmp_path: Path) -> None:
    folder = write(tmp_path, "phi3_small", dummy_token_indices=[7, 300])
    ours, theirs = our_logits(folder), ReferenceModel(str(folder)).logits(TOKENS)
    assert torch.equal(ours.isinf(), theirs.isinf())
    assert ours.isinf().nonzero()[:, 1].unique().tolist() == [7, 300]
    keep = ~theirs.isinf()
    assert torch.allclose(ours[keep], theirs[keep], atol=1e-4)


@pytest.mark.parametrize(
    ("stored", "keys", "message"),
    [
        ("chatglm", {"rmsnorm": False}, "rmsnorm=True only"),
        ("chatglm", {"apply_residual_connection_post_layernorm": True}, "post_layernorm=False"),
        ("minicpm", {"num_experts": 8}, "experts"),
        ("minicpm", {"sparse_config": {"block_size": 64}}, "sparse attention"),
        ("phi3_small", {"rope_position_scale": 2.0}, "rope_position_scale"),
        ("solar", {"bskcn_1": [3]}, "layer 2 of bskcn_3"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(
    tmp_path: Path, stored: str, keys: dict[str, Any], message: str
) -> None:
    folder = write_tiny(stored, tmp_path)
    (folder / "config.json").write_text(json.dumps({**tiny_config(stored), **keys}))
    with pytest.raises(ConfigError, match=message):
        load_model(folder, dtype="float32")


CODE = {"AutoTokenizer": ["tokenization_chatglm.ChatGLM4Tokenizer", None]}


def test_a_tokenizer_that_is_code_loads_from_its_json(tmp_path: Path) -> None:
    folder = write_tiny("chatglm", tmp_path)
    plain = get_tokenizer(str(folder)).encode("hello")
    settings = {"tokenizer_class": "ChatGLM4Tokenizer", "auto_map": CODE, "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = get_tokenizer(str(folder))
    assert tokenizer.encode("hello") == plain and tokenizer.eos_token_id == 2
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"no tokenizer\.json.*--skip-tokenizer-init"):
        get_tokenizer(str(folder))


def test_config_object_keeps_the_published_keys(tmp_path: Path) -> None:
    config = get_config(str(write_tiny("minicpm", tmp_path)))
    assert (config.scale_emb, config.dim_model_base) == (12, 16)
    assert config.rope_theta == 10000.0 and config.rope_parameters["rope_type"] == "default"
    assert config.tie_word_embeddings is True
