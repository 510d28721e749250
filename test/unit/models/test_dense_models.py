"""Dense families: their tiny configurations show what they are there for, and two ranks compute what one does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from models.forward import HandRunner, Share, assert_close, load_model
from models.tiny import build_model, write_checkpoint
from safetensors.torch import load_file, save_file
from torch import nn

from sglang.srt import distributed
from sglang.srt.configs.hf_config import read_facts
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.models.common.qk_norm import PerHeadLayerNorm
from sglang.srt.models.common.weights import unfuse_heads
from sglang.srt.utils.errors import ConfigError

TOKENS = torch.randint(3, 512, (1, 40), generator=torch.Generator().manual_seed(0))
SLIDING, FULL = "sliding_attention", "full_attention"
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def _half_rope(factor: float = 1.0) -> dict[str, Any]:
    return {"rope_parameters": {**PLAIN_ROPE, "partial_rotary_factor": factor}}


# case, and what leaves one of its features out
FEATURES: list[tuple[str, dict[str, Any]]] = [
    ("gemma2", {"attn_logit_softcapping": None}),
    ("gemma2", {"final_logit_softcapping": None}),
    ("gemma2", {"sliding_window": 256}),
    ("gemma2", {"query_pre_attn_scalar": 24}),
    ("gemma3", {"sliding_window": 256}),
    ("gemma3", {"query_pre_attn_scalar": 24}),
    ("gemma3", {"rope_parameters": {SLIDING: PLAIN_ROPE, FULL: PLAIN_ROPE}}),
    ("phi", _half_rope()),
    ("phi3", {"sliding_window": None}),
    ("glm4", _half_rope()),
    ("olmo", {"clip_qkv": None}),
    ("olmo3", {"sliding_window": 256}),
    ("olmo3", {"rope_parameters": {SLIDING: PLAIN_ROPE, FULL: PLAIN_ROPE}}),
    ("granite", {"embedding_multiplier": 1.0}),
    ("granite", {"residual_multiplier": 1.0}),
    ("granite", {"attention_multiplier": 0.25}),
    ("granite", {"logits_scaling": 1.0}),
    ("cohere", {"logit_scale": 1.0}),
    ("cohere2", {"logit_scale": 1.0}),
    ("cohere2", {"layer_types": [SLIDING] * 4}),
    ("cohere2", {"sliding_window": 256}),
    ("stablelm", _half_rope()),
    ("starcoder2", {"sliding_window": None}),
    ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}),
    ("smollm3-window", {"use_sliding_window": False}),
    ("exaone4", {"sliding_window": 256}),
    ("exaone4", {"layer_types": [SLIDING] * 4}),
    ("arcee", {"rope_parameters": PLAIN_ROPE}),
    ("apertus", {"rope_parameters": PLAIN_ROPE}),
    ("hunyuan-dense", {"rope_parameters": PLAIN_ROPE}),
    ("nemotron", _half_rope()),
    ("gpt2-scaled", {"scale_attn_by_inverse_layer_idx": False}),
    ("gptj", {"rotary_dim": 16}),
    ("persimmon", _half_rope()),
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


# config.json as first published, and the kinds of its layers
PUBLISHED: list[tuple[dict[str, Any], list[str]]] = [
    ({"model_type": "gemma2"}, [SLIDING, FULL] * 3),
    ({"model_type": "gemma3_text"}, [*[SLIDING] * 5, FULL]),
    ({"model_type": "gemma3_text", "sliding_window_pattern": 3}, [SLIDING, SLIDING, FULL] * 2),
    ({"model_type": "cohere2", "sliding_window_pattern": 2}, [SLIDING, FULL] * 3),
    ({"model_type": "olmo3"}, [*[SLIDING] * 3, FULL, SLIDING, SLIDING]),
    ({"model_type": "exaone4", "sliding_window_pattern": "LLG"}, [SLIDING, SLIDING, FULL] * 2),
    ({"model_type": "mistral"}, [SLIDING] * 6),
]
SIZES = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "vocab_size": 512}


@pytest.mark.parametrize(("published", "kinds"), PUBLISHED)
def test_alternating_windows_of_published_configs(
    published: dict[str, Any], kinds: list[str]
) -> None:
    facts = read_facts({**SIZES, "sliding_window": 8, **published})
    assert list(facts.layer_types) == kinds


def test_gemma3_base_frequencies_of_published_configs() -> None:
    published = {
        **SIZES,
        "model_type": "gemma3_text",
        "max_position_embeddings": 131072,
        "sliding_window": 8,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    facts = read_facts(published)
    sliding, full = facts.rope_of_layer(0), facts.rope_of_layer(5)
    assert sliding is not None and (sliding.kind, sliding.theta) == ("default", 1e4)
    assert full is not None and (full.kind, full.theta, full.params["factor"]) == ("linear", 1e6, 8)
    assert facts.derived_context_len == 131072


def test_multi_query_is_one_kv_head() -> None:
    assert read_facts({**SIZES, "multi_query": True}).num_key_value_heads == 1
    assert read_facts({**SIZES, "multi_query": False}).num_key_value_heads == 4


def test_unfused_heads_are_in_qkv_order() -> None:
    # Two heads of two channels: rows are named by (head, q/k/v, channel).
    rows = torch.tensor([[100 * h + 10 * x + c] for h in (1, 2) for x in (0, 1, 2) for c in (0, 1)])
    ((name, weight),) = unfuse_heads(2, "l.self_attn.qkv_proj.weight", rows)
    assert name == "l.self_attn.qkv_proj.weight"
    assert weight[:, 0].tolist() == [100, 101, 200, 201, 110, 111, 210, 211, 120, 121, 220, 221]
    assert (
        dict(unfuse_heads(2, "l.self_attn.qkv_proj.bias", rows[:, 0]))[
            "l.self_attn.qkv_proj.bias"
        ].tolist()
        == weight[:, 0].tolist()
    )
    assert dict(unfuse_heads(2, "l.o_proj.weight", rows))["l.o_proj.weight"] is rows


def test_per_head_norm_is_a_layer_norm_of_each_head() -> None:
    norm = PerHeadLayerNorm(3, 8, eps=1e-5)
    norm.weight_loader(norm.weight, torch.randn(3, 8))
    x = torch.randn(5, 24)
    for head, part in enumerate(norm(x).split(8, dim=-1)):
        expected = nn.functional.layer_norm(x[:, 8 * head : 8 * head + 8], (8,), norm.weight[head])
        assert torch.allclose(part, expected, atol=1e-6)
    with pytest.raises(ValueError, match="dimension 0 of the checkpoint tensor must be 3"):
        norm.weight_loader(norm.weight, torch.randn(4, 8))


# Norms over sharded heads, one kv head for two ranks, position tables, fused checkpoints, biased heads.
TWO_RANKS = ("olmo2", "cohere-qk-norm", "stablelm-parallel", "gpt-bigcode", "gpt2", "phi", "phi3")


@torch.inference_mode()
def _rank(rank: int, url: str, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_distributed_environment(2, rank, url, backend="gloo", timeout=60)
    distributed.initialize_model_parallel(2)
    for name in TWO_RANKS:
        runner = HandRunner(load_model(folder / name), folder / name)
        tokens = TOKENS[0].tolist()
        (head,) = runner.step(ForwardMode.EXTEND, [Share(0, 0, tokens[:-1])])
        (last,) = runner.step(ForwardMode.DECODE, [Share(0, len(tokens) - 1, tokens[-1:])])
        torch.save(torch.cat([head, last]), folder / f"{name}.{rank}.pt")


def test_two_ranks_compute_what_the_reference_does(tmp_path: Path) -> None:
    for name in TWO_RANKS:
        write_checkpoint(name, tmp_path / name)
    url = f"file://{tmp_path}/rendezvous"
    context = mp.get_context("fork")
    ranks = [context.Process(target=_rank, args=(rank, url, tmp_path)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]
    for name in TWO_RANKS:
        for rank in (0, 1):
            ours = torch.load(tmp_path / f"{name}.{rank}.pt")
            assert_close(ours, _logits(name), f"{name}, rank {rank}")


def _rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file)


def _old_gpt2(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    mask = torch.ones(1, 1, 256, 256, dtype=torch.uint8).tril()
    stripped = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    return {**stripped, "h.0.attn.bias": mask, "h.1.attn.masked_bias": torch.tensor(-1e4)}


def _old_opt(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("model."): tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(("name", "change"), [("gpt2", _old_gpt2), ("opt", _old_opt)])
def test_names_of_the_first_checkpoints(
    name: str, change: Callable[[dict[str, torch.Tensor]], dict], tmp_path: Path
) -> None:
    folder = write_checkpoint(name, tmp_path)
    expected = dict(load_model(folder).named_parameters())
    _rewrite(folder, change)
    for key, parameter in load_model(folder).named_parameters():
        assert torch.equal(parameter, expected.pop(key)), key
    assert not expected


def test_opt_350m_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint("opt", tmp_path, do_layer_norm_before=False)
    with pytest.raises(ConfigError, match="do_layer_norm_before=False"):
        load_model(folder)


def test_other_xielu_constants_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint("apertus", tmp_path)
    name = "model.layers.1.mlp.act_fn.beta"
    _rewrite(folder, lambda weights: {**weights, name: torch.tensor(0.75)})
    with pytest.raises(ConfigError, match=rf"{name} is 0.75; .*implemented with 0.5"):
        load_model(folder)
