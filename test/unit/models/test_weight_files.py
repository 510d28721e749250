"""Weight files as they come: old formats, damaged and missing ones, and what is in them besides tensors."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.forward import load_model
from models.tiny import write_checkpoint
from safetensors.torch import load_file, save_file
from torch import nn

from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.model_loader import get_model, weight_utils
from sglang.srt.model_loader.declared import (
    ClassDeclarations,
    ModelDeclarations,
    read_declared,
)
from sglang.srt.model_loader.loader import DefaultModelLoader
from sglang.srt.model_loader.weight_utils import (
    find_checkpoint_files,
    kv_cache_scales_loader,
    sharded_weight_loader,
)
from sglang.srt.models.common.weights import WeightLoadError
from sglang.srt.models.llama import LlamaForCausalLM
from sglang.srt.models.registry import ModelRegistry
from sglang.srt.utils.errors import ConfigError

NAMES = ("one.weight", "two.weight")
INDEX = "model.safetensors.index.json"


def tensors() -> dict[str, torch.Tensor]:
    """Large enough to span whole pages of memory."""
    return {name: torch.arange(4096.0).view(64, 64) + i for i, name in enumerate(NAMES)}


def read(folder: Path, load_format: str = "auto", use_mmap: bool = True) -> dict[str, torch.Tensor]:
    files = find_checkpoint_files(folder, load_format)
    files.use_mmap = use_mmap
    return {name: tensor.clone() for name, tensor in files.stream()}


def assert_all_read(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == tensors().keys()
    for name, tensor in tensors().items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("use_mmap", [True, False])
@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.bin", "model.pt"])
def test_pickled_files_of_both_formats(
    tmp_path: Path, name: str, is_zip: bool, use_mmap: bool
) -> None:
    """The format before torch 1.6 cannot be mapped."""
    torch.save(tensors(), tmp_path / name, _use_new_zipfile_serialization=is_zip)
    assert_all_read(read(tmp_path, use_mmap=use_mmap))


def test_pickled_parameters_carry_no_gradient(tmp_path: Path) -> None:
    state = {name: nn.Parameter(tensor) for name, tensor in tensors().items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    found = dict(find_checkpoint_files(tmp_path).stream())
    assert not any(tensor.requires_grad for tensor in found.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "holds a list, not tensors by name"),
        ({"model": {"a": torch.zeros(2)}, "epoch": 3}, "'model' is a dict"),
        ({1: torch.zeros(2)}, "1 is a Tensor"),
    ],
)
def test_pickled_files_that_are_no_checkpoint(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=rf"pytorch_model\.bin.*{message}"):
        read(tmp_path)


def test_pickled_objects_are_not_recommended_to_be_run(tmp_path: Path) -> None:
    torch.save({"a": Path("x")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="never loaded; convert it to safetensors") as caught:
        read(tmp_path)
    assert "weights_only" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_pointer_in_the_place_of_a_file(tmp_path: Path, name: str) -> None:
    pointer = "version https://git-lfs.example/spec/v1\noid sha256:0\nsize 5000000\n"
    (tmp_path / name).write_text(pointer)
    with pytest.raises(ConfigError, match=rf"{name}.*git lfs pull"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_link_to_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(tmp_path / "blobs" / "abc")
    with pytest.raises(ConfigError, match=rf"{name} is a link to .*abc, which does not exist"):
        read(tmp_path)


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save_file(tensors(), tmp_path / "blobs" / "abc")
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/abc")
    assert_all_read(read(tmp_path / "snapshot"))


def test_link_of_an_index_to_nothing(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "part.safetensors"}}))
    (tmp_path / "part.safetensors").symlink_to("gone")
    with pytest.raises(ConfigError, match=r"part\.safetensors is a link to .*gone, which does not"):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_missing_part_without_an_index_is_named(tmp_path: Path, kind: str) -> None:
    for part in (1, 4):
        name = f"model-{part:05}-of-00004.{kind}"
        if kind == "bin":
            torch.save({f"{part}": torch.zeros(1)}, tmp_path / name)
        else:
            save_file({f"{part}": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(ConfigError) as caught:
        find_checkpoint_files(tmp_path)
    message = str(caught.value)
    assert f"model-00002-of-00004.{kind}, model-00003-of-00004.{kind}" in message
    assert str(tmp_path) in message


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], "is not a weight index"),
        ({"weight_map": {}}, "names no tensors"),
        ({"weight_map": ["a"]}, "must map"),
        ({"weight_map": {"a": 3}}, "must map"),
        ({"weight_map": None}, "must map"),
        ({"metadata": {}}, "is not a weight index"),
    ],
)
def test_broken_indices(tmp_path: Path, index: Any, message: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=rf"model\.safetensors\.index\.json.*{message}"):
        find_checkpoint_files(tmp_path)


def write_safetensors_header(path: Path, dtype: str, num_bytes: int) -> None:
    header = json.dumps({"a": {"dtype": dtype, "shape": [2], "data_offsets": [0, num_bytes]}})
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(num_bytes))


@pytest.mark.parametrize("use_mmap", [True, False])
@pytest.mark.parametrize("dtype", ["F6_E2M3", "F4", "NONSENSE"])
def test_unknown_dtypes_name_the_file(tmp_path: Path, dtype: str, use_mmap: bool) -> None:
    write_safetensors_header(tmp_path / "model.safetensors", dtype, 1 if dtype == "F4" else 2)
    try:
        found = read(tmp_path, use_mmap=use_mmap)
    except ConfigError as error:
        assert "model.safetensors" in str(error)
    else:  # a later release that knows it
        assert set(found) == {"a"}


@pytest.mark.parametrize(
    ("present", "load_format", "message"),
    [
        ("model.Q4_K_M.gguf", "auto", "GGUF"),
        ("adapter_model.safetensors", "auto", "LoRA adapter"),
        ("consolidated.safetensors", "auto", "another layout"),
        ("pytorch_model.bin", "safetensors", r"no weight files \(\*\.safetensors\)"),
        ("optimizer.pt", "auto", r"\*\.safetensors, \*\.bin or \*\.pt"),
    ],
)
def test_other_formats_are_refused_by_name(
    tmp_path: Path, present: str, load_format: str, message: str
) -> None:
    (tmp_path / present).write_bytes(b"abc")
    with pytest.raises(ConfigError, match=message) as caught:
        find_checkpoint_files(tmp_path, load_format)
    assert present in str(caught.value)


def test_a_class_that_takes_no_pickled_files_says_so(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="fall_back_to_pt_during_load"):
        find_checkpoint_files(tmp_path, "auto", fall_back_to_pt=False)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        find_checkpoint_files(tmp_path / "nowhere")


@pytest.mark.skipif(sys.platform != "linux", reason="pages are released on Linux only")
def test_tensors_that_are_kept_and_edited_stay_edited(tmp_path: Path) -> None:
    """Pages of the file are released behind the reader, but not those that it wrote to."""
    save_file(tensors(), tmp_path / "model.safetensors")
    kept = {}
    for name, tensor in find_checkpoint_files(tmp_path).stream():
        kept[name] = tensor
        if name == NAMES[0]:
            tensor.view(-1).mul_(2.0)  # through a view
    torch.testing.assert_close(kept[NAMES[0]], 2 * tensors()[NAMES[0]], rtol=0, atol=0)
    torch.testing.assert_close(kept[NAMES[1]], tensors()[NAMES[1]], rtol=0, atol=0)
    assert_all_read(read(tmp_path))  # and not in the file


@pytest.mark.skipif(sys.platform != "linux", reason="pages are released on Linux only")
def test_only_pages_of_the_file_are_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that hands out copies must not find zeros in them."""
    import safetensors

    save_file(tensors(), tmp_path / "model.safetensors")
    real = safetensors.safe_open

    class Copying:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._file = real(*args, **kwargs)

        def __enter__(self) -> Copying:
            return self

        def __exit__(self, *args: Any) -> None:
            pass

        def keys(self) -> list[str]:
            return list(self._file.keys())

        def get_tensor(self, name: str) -> torch.Tensor:
            return self._file.get_tensor(name).clone()

    monkeypatch.setattr(safetensors, "safe_open", Copying)
    kept = dict(find_checkpoint_files(tmp_path).stream())
    assert_all_read(kept)


def test_a_tensor_of_rows_for_more_ranks_is_refused() -> None:
    param = nn.Parameter(torch.zeros(4, 2))
    load = sharded_weight_loader(0)
    load(param, torch.ones(4, 2))
    assert bool((param == 1).all())
    for rows in (3, 8):
        with pytest.raises(ValueError, match=rf"\[{rows}, 2\]"):
            load(param, torch.ones(rows, 2))


@pytest.mark.parametrize("scale", ["NaN", "Infinity", "0", "-1.0"])
def test_cache_scales_must_be_positive_numbers(tmp_path: Path, scale: str) -> None:
    path = tmp_path / "scales.json"
    path.write_text(f'{{"kv_cache": {{"scaling_factor": {{"0": {{"0": 1.0, "1": {scale}}}}}}}}}')
    with pytest.raises(ConfigError, match="positive"):
        kv_cache_scales_loader(str(path), 0, 1, 2, None)


class _Silent(LlamaForCausalLM):
    """Has parameters of every kind, and fills them without telling anybody."""

    fills = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        kinds = (torch.int32, torch.uint8, torch.int64, torch.float8_e4m3fn, torch.float8_e8m0fnu)
        for dtype in kinds:
            name = f"of_{str(dtype).removeprefix('torch.')}"
            param = nn.Parameter(torch.zeros(8, dtype=torch.float32).to(dtype), requires_grad=False)
            self.register_parameter(name, param)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        super().load_weights(weights)
        for name, param in self.named_parameters():
            if name.startswith("of_") and self.fills:
                param.data.copy_(torch.ones(8))


def test_silently_filled_parameters_of_any_dtype(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint("llama", tmp_path)
    monkeypatch.setitem(ModelRegistry.models, "LlamaForCausalLM", _Silent)
    model: Any = load_model(folder)
    assert model.of_int32.tolist() == [1] * 8 == model.of_uint8.tolist()
    assert model.of_float8_e4m3fn.float().tolist() == [1.0] * 8
    monkeypatch.setattr(_Silent, "fills", False)
    with pytest.raises(WeightLoadError, match="of_uint8") as caught:
        load_model(folder)
    assert len(caught.value.problems) == 5


class _Plain(nn.Module):
    """A model file without a base class of ours that declares nothing."""


def test_a_class_that_declares_nothing_has_the_defaults() -> None:
    assert read_declared(ClassDeclarations, _Plain) == ClassDeclarations()
    assert read_declared(ModelDeclarations, _Plain()) == ModelDeclarations()
    assert (
        ClassDeclarations().fall_back_to_pt_during_load
        and not ClassDeclarations().packed_modules_mapping
    )


def test_declarations_are_read_and_none_is_the_default() -> None:
    class Declares(_Plain):
        packed_modules_mapping = {"qkv_proj": ["q_proj"]}
        fall_back_to_pt_during_load = False
        secondary_weights = None

    assert not read_declared(ClassDeclarations, Declares).fall_back_to_pt_during_load
    assert read_declared(ClassDeclarations, Declares).packed_modules_mapping["qkv_proj"]
    assert read_declared(ModelDeclarations, Declares()).secondary_weights == ()


def test_a_declaration_that_fails_is_not_taken_for_an_absent_one() -> None:
    class Broken(_Plain):
        @property
        def secondary_weights(self) -> list[Any]:
            return [self.misspelt]

    with pytest.raises(ConfigError, match="secondary_weights of .*Broken"):
        read_declared(ModelDeclarations, Broken())


def test_secondary_weights_are_streamed_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint("llama", tmp_path / "model")
    (tmp_path / "more").mkdir()
    state = load_file(folder / "model.safetensors")
    moved = {name.removeprefix("model.norm."): state.pop(name) for name in ("model.norm.weight",)}
    save_file(state, folder / "model.safetensors")
    save_file(moved, tmp_path / "more" / "model.safetensors")

    class TwoParts(LlamaForCausalLM):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            source = DefaultModelLoader.Source(str(tmp_path / "more"), None, prefix="model.norm.")
            self.secondary_weights = [source]

    monkeypatch.setitem(ModelRegistry.models, "LlamaForCausalLM", TwoParts)
    model: Any = load_model(folder)
    torch.testing.assert_close(model.model.norm.weight.data, moved["weight"], rtol=0, atol=0)
    save_file({**moved, "stray": torch.zeros(1)}, tmp_path / "more" / "model.safetensors")
    with pytest.raises(WeightLoadError, match=r"model\.norm\.stray belongs to no parameter \(in"):
        load_model(folder)


def test_post_load_weights_runs_for_random_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Derives(LlamaForCausalLM):
        derived: torch.Tensor | None = None

        def post_load_weights(self) -> None:
            self.derived = self.lm_head.weight.sum()

    folder = write_checkpoint("llama", tmp_path)
    monkeypatch.setitem(ModelRegistry.models, "LlamaForCausalLM", Derives)
    model: Any = get_model(
        model_config=ModelConfig(str(folder)),
        load_config=LoadConfig(load_format="dummy"),
        device_config="cpu",
    )
    assert model.derived is not None


class _AddsModules:
    """A quantization method of a plug-in that replaces the weight by a module."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        layer.add_module("packed", nn.Identity())


def test_modules_that_appear_after_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Packs(LlamaForCausalLM):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.model.layers[0].mlp.quant_method = _AddsModules()

    monkeypatch.setitem(ModelRegistry.models, "LlamaForCausalLM", Packs)
    model: Any = load_model(write_checkpoint("llama", tmp_path))
    assert isinstance(model.model.layers[0].mlp.packed, nn.Identity)


def test_a_hub_snapshot_of_pickled_files_beside_an_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Safetensors that are no weights do not keep the real files from being fetched."""
    asked: list[list[str]] = []

    def download(model: str, patterns: list[str], *args: Any) -> str:
        asked.append(patterns)
        return str(tmp_path)

    save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    monkeypatch.setattr(weight_utils, "download_from_hf", download)
    weight_utils.local_checkpoint_folder("org/name", None, "auto")
    assert asked == [["*.json", kind] for kind in ("*.safetensors", "*.bin", "*.pt")]
    torch.save(tensors(), tmp_path / "pytorch_model.bin")
    asked.clear()
    weight_utils.local_checkpoint_folder("org/name", None, "auto")
    assert asked == [["*.json", "*.safetensors"], ["*.json", "*.bin"]]
