"""The loader: what it reads, and that a checkpoint which does not fit is refused with names."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from models.forward import load_model
from models.tiny import build_model, write_checkpoint
from safetensors.torch import load_file, save_file
from torch import nn

from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.model_loader import get_model
from sglang.srt.model_loader.weight_utils import (
    default_weight_loader,
    find_checkpoint_files,
    maybe_remap_kv_scale_name,
)
from sglang.srt.models.common.weights import (
    ExpertNames,
    WeightLoadError,
    WeightMap,
    load_weights,
)
from sglang.srt.models.llama import LlamaForCausalLM
from sglang.srt.models.registry import ModelRegistry
from sglang.srt.models.utils import WeightsMapper
from sglang.srt.utils.errors import ConfigError

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint("llama", tmp_path)


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (None) remove tensors of a one-file checkpoint; `__` stands for a dot."""
    path = folder / "model.safetensors"
    state = load_file(path)
    for key, value in changes.items():
        name = key.replace("__", ".")
        state.pop(name, None)
        if value is not None:
            state[name] = value
    save_file(state, path, metadata={"format": "pt"})


def as_key(name: str) -> str:
    return name.replace(".", "__")


def fused_q(model: nn.Module, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The q rows of a loaded fused matrix, and the same on disk."""
    attention = model.model.layers[1].self_attn
    expected = dict(build_model("llama").named_parameters())[Q_PROJ]
    return attention.qkv_proj.weight[: attention.q_size], expected


def test_model_is_ready_for_inference(folder: Path) -> None:
    model = load_model(folder)
    assert not model.training
    assert not any(param.requires_grad for param in model.parameters())
    torch.testing.assert_close(*fused_q(model, folder), rtol=0, atol=0)


def test_several_shards_with_an_index(tmp_path: Path) -> None:
    folder = write_checkpoint("llama", tmp_path, max_shard_size="60KB")
    files = find_checkpoint_files(folder)
    assert len(files.paths) > 2 and files.index is not None
    torch.testing.assert_close(*fused_q(load_model(folder), folder), rtol=0, atol=0)


def test_shards_without_an_index_and_a_consolidated_copy(tmp_path: Path) -> None:
    folder = write_checkpoint("llama", tmp_path, max_shard_size="60KB")
    (folder / "model.safetensors.index.json").unlink()
    save_file({"other.layout": torch.zeros(2)}, folder / "consolidated.safetensors")
    torch.testing.assert_close(*fused_q(load_model(folder), folder), rtol=0, atol=0)


def test_pickled_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    torch.testing.assert_close(*fused_q(load_model(folder), folder), rtol=0, atol=0)


def test_pickled_code_is_not_run(folder: Path) -> None:
    marker = folder / "ran"
    torch.save({"a": _RunsCode(str(marker))}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="pytorch_model.bin"):
        load_model(folder)
    assert not marker.exists()


class _RunsCode:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


@pytest.mark.parametrize("use_mmap", [True, False])
def test_dtype_is_converted_while_loading(folder: Path, use_mmap: bool) -> None:
    model = get_model(
        model_config=ModelConfig(str(folder), dtype="bfloat16"),
        load_config=LoadConfig(use_mmap=use_mmap),
        device_config="cpu",
    )
    loaded, on_disk = fused_q(model, folder)
    torch.testing.assert_close(loaded, on_disk.bfloat16(), rtol=0, atol=0)


def test_missing_shard_of_a_fused_parameter_is_named(folder: Path) -> None:
    edit_weights(folder, **{as_key(Q_PROJ): None, "model__norm__weight": None})
    with pytest.raises(WeightLoadError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "shard q of parameter model.layers.1.self_attn.qkv_proj.weight" in message
    assert "parameter model.norm.weight [64] is filled by no tensor" in message
    assert len(caught.value.problems) == 2


def test_renamed_tensor_shows_both_sides(folder: Path) -> None:
    weight = load_file(folder / "model.safetensors")["lm_head.weight"]
    edit_weights(folder, lm_head__weight=None, output__weight=weight)
    with pytest.raises(WeightLoadError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "tensor output.weight belongs to no parameter (in model.safetensors)" in message
    assert re.search(r"parameter lm_head.weight .* is filled by no tensor", message)


def test_misshapen_shard_is_named_with_shapes(folder: Path) -> None:
    edit_weights(folder, **{as_key(Q_PROJ): torch.zeros(48, 64)})
    with pytest.raises(WeightLoadError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert f"tensor {Q_PROJ} [48, 64] does not fit parameter" in message
    assert "model.layers.1.self_attn.qkv_proj.weight [128, 64] shard q (rule stacked)" in message


class _Fan(nn.Module):
    """One matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(3, 2, bias=False)


def test_errors_name_the_rules() -> None:
    def halve(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        yield name, tensor.unflatten(0, (2, -1))[0]

    renamed = WeightMap(rename=WeightsMapper(orig_to_new_substr={"old.": "proj."}))
    with pytest.raises(WeightLoadError) as caught:
        load_weights(
            _Fan(), [("old.bias", torch.zeros(2)), ("old.weight", torch.zeros(9))], renamed
        )
    message = str(caught.value)
    assert "tensor old.bias (rule rename: read as proj.bias) belongs to no parameter" in message
    assert (
        "tensor old.weight [9] does not fit parameter proj.weight [2, 3] (rule rename)" in message
    )
    converted = dataclasses.replace(renamed, convert=halve)
    with pytest.raises(WeightLoadError, match=r"\(rules rename, convert\)"):
        load_weights(_Fan(), [("old.weight", torch.zeros(10, 3))], converted)
    with pytest.raises(WeightLoadError, match="tensor old.weight .* refused by rule convert"):
        load_weights(_Fan(), [("old.weight", torch.zeros(5, 3))], converted)
    experts = WeightMap(experts=ExpertNames())
    stray = ("mlp.experts.down_proj", torch.zeros(2, 4, 4))
    with pytest.raises(
        WeightLoadError, match=r"rule experts: read as mlp.experts.0.down_proj.weig"
    ):
        load_weights(_Fan(), [stray], experts)


def test_wrong_vocabulary_is_refused(folder: Path) -> None:
    edit_weights(folder, model__embed_tokens__weight=torch.zeros(500, 64))
    with pytest.raises(WeightLoadError, match=r"embed_tokens.weight \[500, 64\]"):
        load_model(folder)


def test_tensors_after_one_that_stops_loading_are_not_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is said of parameters whose tensors were never reached."""

    def refuse(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        raise ValueError("odd layout")
        yield name, tensor

    weight_map = dataclasses.replace(LlamaForCausalLM.weight_map, convert=refuse)
    monkeypatch.setattr(LlamaForCausalLM, "weight_map", weight_map)
    with pytest.raises(WeightLoadError, match="refused by rule convert .* odd layout") as caught:
        load_model(folder)
    assert len(caught.value.problems) == 1


def test_many_problems_are_counted_and_twenty_shown(folder: Path) -> None:
    edit_weights(folder, **{f"stray_{i}": torch.zeros(1) for i in range(25)})
    with pytest.raises(WeightLoadError, match="and 5 more") as caught:
        load_model(folder)
    assert len(caught.value.problems) == 25


def test_declared_leftovers_are_skipped(folder: Path) -> None:
    edit_weights(folder, model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(8))
    load_model(folder)


def test_a_skip_that_takes_too_much_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight_map = dataclasses.replace(LlamaForCausalLM.weight_map, skip=(r"layers\.1\..*_proj\.",))
    monkeypatch.setattr(LlamaForCausalLM, "weight_map", weight_map)
    with pytest.raises(WeightLoadError) as caught:
        load_model(folder)
    message = str(caught.value)
    fused = "shard k, q, v of parameter model.layers.1.self_attn.qkv_proj.weight [128, 64]"
    k_proj = Q_PROJ.replace("q_proj", "k_proj")
    assert f"{fused} is filled by no tensor (rule skip leaves out {k_proj}, {Q_PROJ}" in message
    assert "(rule skip leaves out model.layers.1.mlp.down_proj.weight)" in message


def test_stored_copy_of_a_tied_head_is_skipped(tmp_path: Path) -> None:
    folder = write_checkpoint("llama-tied", tmp_path)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    edit_weights(folder, lm_head__weight=embedding.clone())
    for dtype in ("float32", "bfloat16"):
        model = load_model(folder, dtype=dtype)
        assert model.lm_head is model.model.embed_tokens
        assert model.lm_head.weight.abs().max() > 0


@pytest.mark.parametrize("shape", [(512, 64), (500, 64)])
def test_stored_head_that_is_no_copy_of_a_tied_one_is_refused(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    folder = write_checkpoint("llama-tied", tmp_path)
    edit_weights(folder, lm_head__weight=torch.zeros(shape))
    with pytest.raises(WeightLoadError, match="another matrix than the embedding") as caught:
        load_model(folder)
    assert len(caught.value.problems) == 1 and "(in model.safetensors)" in str(caught.value)
    untied = json.dumps({"tie_word_embeddings": False})
    if shape == (512, 64):
        model = load_model(folder, model_override_args=untied)
        assert model.lm_head.weight.abs().max() == 0


def test_truncated_file_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ConfigError, match="model.safetensors.*truncated"):
        load_model(folder)


def test_file_of_the_index_that_is_absent_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint("llama", tmp_path, max_shard_size="60KB")
    gone = sorted(folder.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ConfigError, match=gone.name):
        load_model(folder)


def test_index_that_promises_more_than_its_file_holds(tmp_path: Path) -> None:
    folder = write_checkpoint("llama", tmp_path, max_shard_size="60KB")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["ghost.weight"] = next(iter(index["weight_map"].values()))
    path.write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="ghost.weight"):
        load_model(folder)


def test_index_may_not_leave_the_folder(tmp_path: Path) -> None:
    folder = write_checkpoint("llama", tmp_path, max_shard_size="60KB")
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(ConfigError, match="outside the model folder"):
        load_model(folder)


def test_same_tensor_in_two_files_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "part-1.safetensors")
    save_file({Q_PROJ: torch.zeros(64, 64)}, folder / "part-2.safetensors")
    with pytest.raises(ConfigError, match="part-1.safetensors and part-2.safetensors"):
        load_model(folder)


def test_folder_without_weights_says_what_it_holds(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="no weight files.*config.json"):
        load_model(folder)


def test_unknown_load_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="allowed: auto, safetensors, pt, dummy"):
        LoadConfig(load_format="npz")


def test_dummy_weights_are_seeded_and_need_no_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    first, second = (
        get_model(
            model_config=ModelConfig(str(folder)),
            load_config=LoadConfig(load_format="dummy"),
            device_config="cpu",
        )
        for _ in range(2)
    )
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b) and 0 < a.abs().max() <= 0.02, name


def test_load_weights_takes_a_subset_later(folder: Path) -> None:
    model = load_model(folder)
    assert isinstance(model, LlamaForCausalLM)
    touched = model.load_weights([(Q_PROJ, torch.full((64, 64), 3.0))])
    assert touched == {"model.layers.1.self_attn.qkv_proj.weight"}
    attention = model.model.layers[1].self_attn
    assert bool((attention.qkv_proj.weight[: attention.q_size] == 3.0).all())
    assert not bool((attention.qkv_proj.weight[attention.q_size :] == 3.0).any())
    with pytest.raises(WeightLoadError, match="tensor nonsense belongs to no parameter"):
        model.load_weights([("nonsense", torch.zeros(1))])


class _Plugin(LlamaForCausalLM):
    """A plug-in's own loading, which tells nobody what it fills."""

    leave_out = ""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        parameters = dict(self.named_parameters())
        fused: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in weights:
            target = name
            for part, whole in (
                ("q_proj", "qkv_proj"),
                ("k_proj", "qkv_proj"),
                ("v_proj", "qkv_proj"),
                ("gate_proj", "gate_up_proj"),
                ("up_proj", "gate_up_proj"),
            ):
                if f".{part}." in name:
                    target = name.replace(part, whole)
                    break
            fused.setdefault(target, {})[name] = tensor
        for target, parts in fused.items():
            if target != self.leave_out:
                parameters[target].data.copy_(torch.cat(list(parts.values())))


def test_plugin_that_reports_nothing_is_watched(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ModelRegistry.models, "LlamaForCausalLM", _Plugin)
    assert type(load_model(folder)) is _Plugin
    monkeypatch.setattr(_Plugin, "leave_out", "model.layers.0.mlp.down_proj.weight")
    with pytest.raises(WeightLoadError, match="layers.0.mlp.down_proj.weight") as caught:
        load_model(folder)
    assert len(caught.value.problems) == 1


def test_tensors_that_a_plugin_passes_over_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also one that it looked at only, and none that it used, kept for later or may well leave out."""

    class Careless(_Plugin):
        def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
            kept = [pair for pair in weights if pair[1].dim() > 1 or "norm" in pair[0]]
            super().load_weights(kept)

    folder = write_checkpoint("llama", tmp_path)
    monkeypatch.setitem(ModelRegistry.models, "LlamaForCausalLM", Careless)
    with caplog.at_level(logging.WARNING):
        load_model(folder)
    assert "does not use" not in caplog.text
    strays = {f"model__layers__{i}__stray__bias": torch.zeros(2) for i in range(2)}
    ignored = {"model__layers__0__self_attn__rotary_emb__inv_freq": torch.zeros(8)}
    edit_weights(folder, **strays, **ignored, other_stray=torch.zeros(1))
    with caplog.at_level(logging.WARNING):
        load_model(folder)
    assert "model.layers.*.stray.bias (2)" in caplog.text and "other_stray" in caplog.text
    assert "inv_freq" not in caplog.text and "q_proj" not in caplog.text


@pytest.mark.parametrize("look", [lambda x: x.data, lambda x: x.T.T, lambda x: x.mT.mT])
def test_tensors_that_a_plugin_uses_through_a_property_are_used(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    look: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    class Looks(_Plugin):
        def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
            is_matrix = {name: tensor for name, tensor in weights if tensor.dim() > 1}
            seen = {name: look(tensor) for name, tensor in is_matrix.items()}
            super().load_weights((*seen.items(), *self.kept))

        @property
        def kept(self) -> list[tuple[str, torch.Tensor]]:
            return [
                pair
                for pair in load_file(folder / "model.safetensors").items()
                if pair[1].dim() < 2
            ]

    monkeypatch.setitem(ModelRegistry.models, "LlamaForCausalLM", Looks)
    with caplog.at_level(logging.WARNING):
        load_model(folder)
    assert "layernorm" in caplog.text and "_proj" not in caplog.text


def test_fallback_is_strict_in_both_directions(tmp_path: Path) -> None:
    folder = write_checkpoint("olmo2-on-transformers", tmp_path)
    edit_weights(folder, model__norm__weight=None, stray=torch.zeros(1))
    with pytest.raises(WeightLoadError) as caught:
        load_model(folder, model_impl="transformers")
    assert "tensor stray belongs to no parameter (in model.safetensors)" in str(caught.value)
    assert "parameter model.norm.weight is filled by no tensor" in str(caught.value)
    assert len(caught.value.problems) == 2


def test_fallback_names_a_misshapen_tensor(tmp_path: Path) -> None:
    folder = write_checkpoint("olmo2-on-transformers", tmp_path)
    edit_weights(folder, lm_head__weight=torch.zeros(500, 64))
    with pytest.raises(WeightLoadError, match=r"lm_head.weight \[500, 64\] does not fit") as caught:
        load_model(folder, model_impl="transformers")
    assert len(caught.value.problems) == 1


def test_fallback_replaces_single_weights_later(tmp_path: Path) -> None:
    model = load_model(
        write_checkpoint("olmo2-on-transformers", tmp_path), model_impl="transformers"
    )
    model.load_weights([("model.norm.weight", torch.full((64,), 5.0))])
    assert model.model.norm.weight.tolist() == [5.0] * 64


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "dynamic",
        ),
        ({"kv_lora_rank": 8}, "kv_lora_rank"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
    ],
)
def test_fallback_refuses_attention_it_cannot_represent(
    overrides: dict[str, object], message: str, tmp_path: Path
) -> None:
    folder = write_checkpoint("olmo2-on-transformers", tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_model(folder, model_impl="transformers", model_override_args=json.dumps(overrides))


def test_default_loader_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3\] does not fit \[3, 2\]"):
        default_weight_loader(nn.Parameter(torch.zeros(3, 2)), torch.zeros(2, 3))
    scalar = nn.Parameter(torch.zeros(1))
    default_weight_loader(scalar, torch.tensor(4.0))
    assert scalar.item() == 4.0


def test_kv_scale_names() -> None:
    ours = dict.fromkeys(["l.self_attn.attn.k_scale", "l.self_attn.attn.v_scale"])
    remap = maybe_remap_kv_scale_name
    assert remap("l.self_attn.kv_scale", ours) == "l.self_attn.attn.k_scale"
    assert remap("l.self_attn.k_proj.k_scale", ours) == "l.self_attn.attn.k_scale"
    assert remap("l.self_attn.v_proj.output_scale", ours) == "l.self_attn.attn.v_scale"
    assert remap("l.self_attn.v_scale", ours) == "l.self_attn.attn.v_scale"
    assert remap("l.self_attn.q_proj.output_scale", ours) is None
    assert remap("m.self_attn.k_scale", ours) is None
    assert remap("l.self_attn.q_proj.weight", ours) == "l.self_attn.q_proj.weight"
