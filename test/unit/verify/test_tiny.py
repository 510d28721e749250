"""Tiny configurations: where they come from, and that their checkpoints are random everywhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sglang.srt.models.llama import LlamaForCausalLM
from sglang.srt.models.llava import LlavaForConditionalGeneration
from sglang.srt.models.registry import ModelRegistry
from sglang.srt.utils.errors import ConfigError
from sglang.verify.media import family_of
from sglang.verify.media_gemma3 import Gemma3
from sglang.verify.media_llava import Llava
from sglang.verify.media_published import published_names
from sglang.verify.reference import ReferenceModel
from sglang.verify.references import find_reference
from sglang.verify.tiny import (
    CONFIG_FOLDER,
    build_reference,
    require_reference,
    tiny_config,
    write_config,
    write_tiny,
)


@pytest.mark.parametrize("path", sorted(CONFIG_FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_every_stored_configuration_builds_and_is_found_by_architecture(path: Path) -> None:
    raw = tiny_config(path.stem)
    assert tiny_config(raw["architectures"][0]) == raw
    names = published_names(raw)  # where transformers has the model under other ones
    raw = raw if names is None else names.config(raw)
    config, text = build_reference(raw).config, raw.get("text_config")
    vocab_size = config.get_text_config().vocab_size if text else config.vocab_size
    assert vocab_size == (text or raw)["vocab_size"]


def test_a_derived_configuration_shows_the_features_of_its_class() -> None:
    """Gemma 3 has one full layer in six: the tiny model must have it, and windows that are shorter than a prompt."""
    raw = tiny_config("Gemma3ForCausalLM")
    config = build_reference(raw).config
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    assert config.sliding_window == 8 and config.hidden_size == 64
    assert tiny_config("gemma3_text") == raw


def test_an_unknown_name_gets_a_hint() -> None:
    with pytest.raises(ConfigError, match="LlamaForCausalML.*did you mean .*LlamaForCausalLM"):
        tiny_config("LlamaForCausalML")


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "llama"}'])
def test_a_bad_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="x.json"):
        tiny_config(str(path))


def test_what_is_not_tiny_is_refused_before_it_is_built() -> None:
    with pytest.raises(ConfigError, match="parameters, allowed"):
        build_reference({**tiny_config("llama"), "hidden_size": 65536})


def test_a_class_from_outside_uses_its_file_or_what_it_extends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class AcmeForCausalLM(LlamaForCausalLM):
        pass

    monkeypatch.setitem(ModelRegistry.models, "AcmeForCausalLM", AcmeForCausalLM)
    acme = tiny_config("AcmeForCausalLM")
    assert acme == {**tiny_config("llama"), "architectures": ["AcmeForCausalLM"]}
    monkeypatch.setattr(sys.modules[__name__], "__file__", str(tmp_path / "acme.py"))
    (tmp_path / "acme.json").write_text(json.dumps({**acme, "hidden_size": 32}))
    assert tiny_config("AcmeForCausalLM")["hidden_size"] == 32


def test_a_class_from_outside_names_its_reference(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A type that transformers does not know is proven too, and its config.json may name code that a tiny checkpoint lacks."""

    class AcmeForCausalLM(LlamaForCausalLM):
        reference = "sglang.verify.references.dense:mimo"

    monkeypatch.setitem(ModelRegistry.models, "AcmeForCausalLM", AcmeForCausalLM)
    sizes = {key: value for key, value in tiny_config("mimo").items() if key != "model_type"}
    raw = {**sizes, "model_type": "acme", "architectures": ["AcmeForCausalLM"]}
    raw["auto_map"] = {"AutoConfig": "configuration_acme.AcmeConfig"}
    folder = write_config(raw, tmp_path)
    assert "auto_map" not in json.loads((folder / "config.json").read_text())
    assert ReferenceModel(str(folder)).is_own
    monkeypatch.setattr(AcmeForCausalLM, "reference", "no_such_package:acme")
    with pytest.raises(ConfigError, match="no_such_package:acme.*package.module:name"):
        find_reference(raw)
    monkeypatch.delattr(AcmeForCausalLM, "reference")
    with pytest.raises(ConfigError, match="--trust-remote-code; else write one"):
        require_reference(raw)


def test_a_class_from_outside_names_its_media(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its prompts are its own also where it extends a class whose family is known."""

    class AcmeForCausalLM(LlavaForConditionalGeneration):
        pass

    monkeypatch.setitem(ModelRegistry.models, "AcmeForCausalLM", AcmeForCausalLM)
    assert isinstance(family_of(["AcmeForCausalLM"]), Llava)
    path = "sglang.verify.media_gemma3:Gemma3"
    monkeypatch.setattr(AcmeForCausalLM, "media_family", path, raising=False)
    assert isinstance(family_of(["AcmeForCausalLM"]), Gemma3)


def test_the_checkpoint_is_random_and_carries_the_asked_architecture(
    tmp_path: Path, llama: Path
) -> None:
    for name, tensor in load_file(llama / "model.safetensors").items():
        assert tensor.std() > 0.01, name
    path = tmp_path / "x.json"
    path.write_text(json.dumps({**tiny_config("llama"), "architectures": ["AcmeForCausalLM"]}))
    folder = write_tiny(str(path), tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["AcmeForCausalLM"], "llama")
    assert (folder / "tokenizer.json").is_file()
