"""Finding the first wrong module: every parameter of a layer, and faults around the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.kv_cache_manager import KVCacheManager
from sglang.verify.coverage import Coverage, measure_coverage
from sglang.verify.diverge import ModuleTrace, trace_modules
from sglang.verify.forms import Ask, Form, forms_named
from sglang.verify.hooks import causal_scores
from sglang.verify.proof import Proof
from sglang.verify.subject import SubjectConfig
from sglang.verify.tiny import write_tiny

WHOLE = Form("one prompt", (Ask("short", num_tokens=3),))
PARTIAL_HIT = forms_named(["partial hit, page 1"])[0]


@contextmanager
def changed(parameter: torch.Tensor, rows: slice = slice(None)) -> Iterator[None]:
    """Half as large again, in some rows."""
    original = parameter.detach().clone()
    with torch.no_grad():
        parameter[rows] *= 1.5
    yield
    with torch.no_grad():
        parameter.copy_(original)


def trace(proof: Proof, coverage: Coverage, form: Form = WHOLE) -> ModuleTrace:
    return trace_modules(proof, form, coverage.placements)


def test_nothing_differs_in_an_honest_model(proof: Proof, coverage: Coverage) -> None:
    found = trace(proof, coverage)
    assert found.first is None
    assert found.num_tokens == 18 + 2
    assert all(error.passed for error in found.sites)
    assert all(not error.errors.isnan().any() for error in found.sites)
    compared = {(error.site.ours, error.site.part) for error in found.sites}
    for layer in ("model.layers.0", "model.layers.1"):
        assert (layer, "output") in compared
        assert (f"{layer}.post_attention_layernorm", "residual stream") in compared
        shards = {e.site.shard for e in found.sites if e.site.ours.startswith(layer)}
        assert shards == {"", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
    assert [label for label, _ in found.layers()] == ["0", "1", "logits"]


CHANGES = [
    ("embed_tokens", slice(None), "embed_tokens", ""),
    ("layers.1.input_layernorm", slice(None), "layers.1.input_layernorm", ""),
    ("layers.1.self_attn.qkv_proj", slice(0, 64), "layers.1.self_attn.qkv_proj", "q_proj"),
    ("layers.1.self_attn.qkv_proj", slice(64, 96), "layers.1.self_attn.qkv_proj", "k_proj"),
    ("layers.1.self_attn.qkv_proj", slice(96, 128), "layers.1.self_attn.qkv_proj", "v_proj"),
    ("layers.1.self_attn.o_proj", slice(None), "layers.1.self_attn.o_proj", ""),
    ("layers.0.mlp.gate_up_proj", slice(0, 96), "layers.0.mlp.gate_up_proj", "gate_proj"),
    ("layers.0.mlp.gate_up_proj", slice(96, 192), "layers.0.mlp.gate_up_proj", "up_proj"),
    ("layers.0.mlp.down_proj", slice(None), "layers.0.mlp.down_proj", ""),
    ("norm", slice(None), "norm", ""),
]


@pytest.mark.parametrize(
    ("name", "rows", "module", "shard"), CHANGES, ids=[f"{c[0]}-{c[3]}" for c in CHANGES]
)
def test_a_changed_parameter_is_named(
    proof: Proof, coverage: Coverage, name: str, rows: slice, module: str, shard: str
) -> None:
    model = proof.subject(1).model
    with changed(model.get_parameter(f"model.{name}.weight"), rows):
        first = trace(proof, coverage).first
    assert first is not None
    assert (first.site.ours, first.site.shard) == (f"model.{module}", shard)
    assert first.first_token == 0
    assert f"model.{module}" in first.describe() and "token 0 differs by" in first.describe()


def test_the_head_is_named_as_logits(proof: Proof, coverage: Coverage) -> None:
    with changed(proof.subject(1).model.get_parameter("lm_head.weight")):
        first = trace(proof, coverage).first
    assert first is not None and first.site.ours == "logits"


@pytest.mark.parametrize(
    ("attribute", "value", "part", "token"),
    [("scaling", 0.3, "scores", 0), ("sliding_window_size", 7, "attention output", 8)],
)
def test_attention_settings_are_told_apart(
    proof: Proof,
    coverage: Coverage,
    monkeypatch: pytest.MonkeyPatch,
    attribute: str,
    value: Any,
    part: str,
    token: int,
) -> None:
    """A wrong scale shows in the scores from the first token; a window that should not be there, from the token that it cuts."""
    layer = proof.subject(1).model.get_submodule("model.layers.1.self_attn.attn")
    assert isinstance(layer, RadixAttention)
    monkeypatch.setattr(layer, attribute, value)
    first = trace(proof, coverage).first
    assert first is not None
    assert first.site.ours == "model.layers.1.self_attn.attn"
    assert first.site.part.startswith(part)
    assert first.first_token == token


def test_a_wrong_cache_slot_shows_in_the_attention_of_the_first_layer(
    proof: Proof, coverage: Coverage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is right, the cache is not: the first wrong token is the first one computed on top of the prefix."""
    honest = KVCacheManager.open

    def open_wrong(self: KVCacheManager, *args: Any, **kwargs: Any) -> Any:
        handle = honest(self, *args, **kwargs)
        if handle is not None and handle.cached_len > 20:
            handle.buffer = handle.buffer.copy()
            handle.buffer[3] = handle.buffer[17]
        return handle

    monkeypatch.setattr(KVCacheManager, "open", open_wrong)
    found = trace(proof, coverage, PARTIAL_HIT)
    assert found.rid == "1-fork"
    assert found.first is not None
    assert found.first.site.ours == "model.layers.0.self_attn.attn"
    assert found.first.site.part.startswith("attention output")
    assert found.first.first_token == 41


@pytest.mark.parametrize(
    ("name", "model_impl", "module"),
    [
        ("Gemma2ForCausalLM", "auto", "model.layers.1.mlp.down_proj"),
        ("llama", "transformers", "model.layers.1.self_attn.o_proj"),
        ("OlmoeForCausalLM", "transformers", "model.layers.1.self_attn.k_norm"),
    ],
)
def test_other_shapes_of_models(tmp_path: Path, name: str, model_impl: str, module: str) -> None:
    """Gemma scales its embedding elsewhere than transformers, which is no difference; the fallback has the names of transformers."""
    folder = str(write_tiny(name, tmp_path))
    config = ModelConfig(folder, dtype="float32", model_impl=model_impl)
    placements = measure_coverage(folder, config).placements
    proof = Proof(folder, SubjectConfig(model_impl=model_impl))
    assert trace_modules(proof, WHOLE, placements).first is None
    # Not all rows: a norm behind the matrix would take a common factor out again.
    with changed(proof.subject(1).model.get_parameter(f"{module}.weight"), slice(0, 8)):
        first = trace_modules(proof, WHOLE, placements).first
    assert first is not None and first.site.ours == module


def test_hooks_are_gone_afterwards(proof: Proof, coverage: Coverage) -> None:
    trace(proof, coverage)
    for model in (proof.subject(1).model, proof.reference.model):
        for module in model.modules():
            assert not module._forward_hooks and not module._forward_pre_hooks
    assert "forward" not in vars(proof.subject(1).runner)


def test_scores_do_not_depend_on_the_order_of_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(5, 4, 8, generator=generator)
    k = torch.randn(5, 2, 8, generator=generator)
    order = torch.randperm(8, generator=generator)
    scores = causal_scores(q, k, 0.5)
    assert torch.allclose(scores, causal_scores(q[..., order], k[..., order], 0.5), atol=1e-5)
    by_head = scores.view(5, 4, 5)
    assert torch.allclose(by_head[3, 2, 1], 0.5 * q[3, 2] @ k[1, 1], atol=1e-5)
    assert by_head[2, :, 3:].eq(0).all()
    assert torch.allclose(causal_scores(q[3:], k, 0.5, start=3), scores[3:], atol=1e-5)
