"""`sglang new-model`: what is written, and what is refused. That the files work is proven in test/models."""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path

import pytest

from sglang.cli.main import COMMANDS, load
from sglang.srt.models.common.entry_class import names_in_text
from sglang.srt.models.llava import LlavaForConditionalGeneration
from sglang.srt.models.registry import ModelRegistry
from sglang.srt.multimodal.processors.llava import LlavaImageProcessor
from sglang.srt.utils.errors import ConfigError
from sglang.verify.pruning import prune
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


@pytest.mark.parametrize(
    "like", ["Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "BailingMoeForCausalLM"]
)
def test_nothing_is_copied_that_nothing_uses(like: str) -> None:
    """Qwen3's file has a hook, and Qwen3-MoE's a class, for files that import from it; an author would wonder what they are for."""
    text = Scaffold("acme", like).model_text()
    assert "__getattr__" not in text and "AcmeAttention" not in text
    tree = ast.parse(text)
    used = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    bound = [alias.asname or alias.name for node in imports for alias in node.names]
    defined = [node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    assert bound and defined
    assert not [name for name in (*bound, *defined) if name != "annotations" and name not in used]


def test_what_is_pruned_goes_with_its_comment_and_its_imports() -> None:
    text = (
        "from a import b, c\nimport d\n\n# About old.\nOLD = d.x\n\n\n@c\ndef old():\n    return OLD\n\n\n"
        "class New(b):\n    pass\n\n\nEntryClass = New\n"
    )
    pruned = "from a import b\n\n\nclass New(b):\n    pass\n\n\nEntryClass = New\n"
    assert prune(text, "New") == pruned


def test_imports_of_the_copied_file_keep_their_names() -> None:
    text = Scaffold("acme", "mistral").model_text()
    assert "from sglang.srt.models.llama import LlamaDecoderLayer" in text
    assert "class AcmeDecoderLayer(LlamaDecoderLayer)" in text
    assert "MistralForCausalLM" not in text


def test_a_model_with_media_is_begun_as_a_plugin_with_its_processor(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It extends the other model, whose family of prompts proves it; inside a checkout its pieces are in many places."""
    scaffold = Scaffold("AcmeForConditionalGeneration", "LlavaForConditionalGeneration")
    assert (scaffold.name, scaffold.architecture) == ("acme", "AcmeForConditionalGeneration")
    with pytest.raises(ConfigError, match="add_a_model_that_sees.md"):
        scaffold.write_into(root)
    scaffold.write_plugin(tmp_path / "plug")
    project = (tmp_path / "plug/pyproject.toml").read_text()
    points = project.split('[project.entry-points."sglang.processors"]')[1].split("[")[0]
    assert points.strip() == 'AcmeForConditionalGeneration = "sglang_acme"'
    monkeypatch.syspath_prepend(tmp_path / "plug")
    module = importlib.import_module("sglang_acme.acme")
    assert issubclass(module.EntryClass, LlavaForConditionalGeneration)
    assert issubclass(module.AcmeProcessor, LlavaImageProcessor)
    assert module.AcmeProcessor.models == [module.EntryClass]
    ast.parse((tmp_path / "plug/tests/test_acme.py").read_text())


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
