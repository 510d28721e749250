"""`sglang new-model`: what is written, and what is refused. That the files work is proven in test/models."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from sglang.cli.main import COMMANDS, load
from sglang.srt.models.common.entry_class import names_in_text
from sglang.srt.models.registry import ModelRegistry
from sglang.srt.utils.errors import ConfigError
from sglang.verify.references import REFERENCES, build_reference, find_reference
from sglang.verify.scaffold import DOCS_TABLE, Scaffold
from sglang.verify.tiny import tiny_config


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "python/sglang/srt/models").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    "like",
    [
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Gemma2ForCausalLM",
        "Qwen3MoeForCausalLM",
        "DeepseekV3ForCausalLM",
        "BaichuanForCausalLM",
        "BailingMoeV2ForCausalLM",
    ],
)
def test_the_copy_defines_its_own_classes_and_one_entry(root: Path, like: str) -> None:
    Scaffold("acme", like).write_into(root)
    path = root / "python/sglang/srt/models/acme.py"
    text = path.read_text()
    tree = ast.parse(text)
    assert names_in_text(path) == ["AcmeForCausalLM"]
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert "AcmeForCausalLM" in defined
    assert not defined & set(ModelRegistry.models)
    assert (ast.get_docstring(tree) or "").startswith("Acme, so far a copy of")
    config = json.loads((root / "python/sglang/verify/tiny_configs/acme.json").read_text())
    assert config["architectures"] == ["AcmeForCausalLM"]
    ast.parse((root / "test/models/test_acme.py").read_text())


@pytest.mark.parametrize("like", sorted(REFERENCES))
def test_a_copy_of_a_family_without_a_class_in_transformers_has_its_reference(like: str) -> None:
    raw = json.loads(Scaffold("acme", like).config_text())
    assert raw["architectures"] == ["AcmeForCausalLM"]
    ours, theirs = build_reference(raw), build_reference(tiny_config(like))
    assert type(ours) is type(theirs)
    shapes = [{k: v.shape for k, v in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert find_reference({**raw, "model_type": "llama"}) is None


def test_a_file_with_several_architectures_becomes_one_with_one() -> None:
    """What the copied class extends stays under another name; what nothing refers to goes."""
    text = Scaffold("acme", "DeepseekV3ForCausalLM").model_text()
    assert "class AcmeForCausalLM(AcmeBaseForCausalLM)" in text
    assert "class AcmeDecoderLayer(AcmeBaseDecoderLayer)" in text
    text = Scaffold("acme", "BaichuanForCausalLM").model_text()
    assert "BaiChuan" not in text and "\n\n\n\n" not in text
    assert Scaffold("acme", "BailingMoeV2ForCausalLM").model_text().count("ForCausalLM(") == 2
    assert "class AcmeModel(DecoderModel)" in Scaffold("acme", "Grok1ForCausalLM").model_text()


def test_imports_of_the_copied_file_keep_their_names() -> None:
    text = Scaffold("acme", "mistral").model_text()
    assert "from sglang.srt.models.llama import LlamaDecoderLayer" in text
    assert "class AcmeDecoderLayer(LlamaDecoderLayer)" in text
    assert "MistralForCausalLM" not in text


def test_the_row_goes_behind_the_last_one(root: Path) -> None:
    docs = root / DOCS_TABLE
    docs.parent.mkdir(parents=True)
    docs.write_text("# Models\n\n| a | b | c |\n|---|---|---|\n| x | y | z |\n\nMore.\n")
    Scaffold("acme", "llama").write_into(root)
    lines = docs.read_text().splitlines()
    assert lines[4:6] == ["| x | y | z |", Scaffold("acme", "llama").docs_row()]
    assert lines[-1] == "More."


@pytest.mark.parametrize("name", ["1a", "class", "a b", "", "a/b"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no name for a model file"):
        Scaffold(name, "llama")


def test_names_are_brought_into_form() -> None:
    assert Scaffold("MyModelForCausalLM", "llama").name == "my_model"
    assert Scaffold("my-model", "llama").architecture == "MyModelForCausalLM"


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="LlamaForCausalLM is already served"):
        Scaffold("llama", "mistral")


def test_nothing_is_overwritten(root: Path) -> None:
    Scaffold("acme", "llama").write_into(root)
    path = root / "python/sglang/srt/models/acme.py"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="acme.py.* exists already"):
        Scaffold("acme", "llama").write_into(root)
    assert path.read_text() == "mine"


def test_outside_a_checkout_the_command_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["acme", "--like", "llama", "--root", str(tmp_path)]
    assert load(COMMANDS["new-model"])(words, "sglang new-model") == 2
    assert "--plugin DIR" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
