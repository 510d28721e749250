"""Which class serves which architecture, and the words when none does."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from models.tiny import write_checkpoint

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.environ import envs
from sglang.srt.model_loader.utils import get_model_architecture
from sglang.srt.models import registry
from sglang.srt.models.llama import LlamaForCausalLM
from sglang.srt.models.registry import ModelRegistry, import_model_classes

MODEL_SOURCE = "class {name}:\n    pass\n\nEntryClass = {entry}\n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """An importable package with two model files, a broken one, and a sub-package."""
    name = f"plugin_{abs(hash(request.node.name))}"
    root = tmp_path / name
    (root / "sub").mkdir(parents=True)
    (root / "__init__.py").write_text("")
    (root / "one.py").write_text(
        MODEL_SOURCE.format(name="LlamaForCausalLM", entry="LlamaForCausalLM")
    )
    (root / "two.py").write_text(MODEL_SOURCE.format(name="NewModel", entry="[NewModel]"))
    (root / "broken.py").write_text("import a_package_that_is_not_there\n")
    (root / "helper.py").write_text("x = 1\n")
    (root / "sub" / "__init__.py").write_text("EntryClass = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return name


def test_scan_imports_nothing() -> None:
    code = (
        "import sys; from sglang.srt.models.registry import ModelRegistry\n"
        "assert 'LlamaForCausalLM' in ModelRegistry.models\n"
        "assert {'Qwen2ForCausalLM', 'Qwen3ForCausalLM', 'MistralForCausalLM',"
        " 'TransformersForCausalLM'} <= set(ModelRegistry.get_supported_archs())\n"
        "assert not {'torch', 'sglang.srt.models.llama'} & set(sys.modules), 'imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_entry_class_resolves_to_its_name() -> None:
    for name in list(ModelRegistry.get_supported_archs()):
        cls, resolved = ModelRegistry.resolve_model_cls(name)
        assert cls.__name__ == resolved == name


def test_table_is_a_dict_to_external_code(monkeypatch: pytest.MonkeyPatch) -> None:
    table = registry.ModelTable(ModelRegistry.models)
    table["Mine"] = int
    table.update({"Other": str})
    assert table["Mine"] is int and table.get("Other") is str and table.get("absent") is None
    assert table.pop("Mine") is int and "Mine" not in table
    assert LlamaForCausalLM in table.values()
    assert ("LlamaForCausalLM", LlamaForCausalLM) in table.items()


def test_import_model_classes_skips_broken_files(package: str) -> None:
    assert set(import_model_classes(package)) == {"LlamaForCausalLM", "NewModel"}
    with pytest.raises(ImportError, match="a_package_that_is_not_there"):
        import_model_classes(package, strict=True)


def test_disabled_modules_are_skipped(package: str) -> None:
    with envs.SGLANG_DISABLED_MODEL_ARCHS.override(("two", "qwen3")):
        assert set(import_model_classes(package)) == {"LlamaForCausalLM"}
        assert "Qwen3ForCausalLM" not in registry._Registry().models


def test_register_needs_overwrite_for_a_taken_name(package: str) -> None:
    fresh = registry._Registry()
    with pytest.raises(ValueError, match="LlamaForCausalLM is already registered.*overwrite"):
        fresh.register(package)
    fresh.register(package, overwrite=True)
    assert fresh.models["LlamaForCausalLM"].__module__ == f"{package}.one"
    assert fresh.resolve_model_cls(["Nothing", "NewModel"])[1] == "NewModel"


def test_external_package_overrides_builtin(package: str) -> None:
    with envs.SGLANG_EXTERNAL_MODEL_PACKAGE.override((package,)):
        assert registry._Registry().models["LlamaForCausalLM"].__module__ == f"{package}.one"


def test_missing_external_package_only_warns(caplog: pytest.LogCaptureFixture) -> None:
    with envs.SGLANG_EXTERNAL_MODEL_PACKAGE.override(("no_such_package",)):
        fresh = registry._Registry()
        assert fresh.resolve_model_cls("LlamaForCausalLM")[0] is LlamaForCausalLM
    assert "no_such_package" in caplog.text


def test_duplicate_in_one_package(package: str, tmp_path: Path) -> None:
    source = MODEL_SOURCE.format(name="NewModel", entry="NewModel")
    (tmp_path / package / "three.py").write_text(source)
    with pytest.raises(AssertionError, match="NewModel"):
        import_model_classes(package)


def config_for(folder: Path, arch: str, model_impl: str) -> ModelConfig:
    return ModelConfig(
        str(folder), model_override_args=f'{{"architectures": ["{arch}"]}}', model_impl=model_impl
    )


@pytest.mark.parametrize(
    ("arch", "model_impl", "expected"),
    [
        ("LlamaForCausalLM", "auto", "LlamaForCausalLM"),
        ("LLaMAForCausalLM", "auto", "LlamaForCausalLM"),
        ("LlamaForCausalLM", "sglang", "LlamaForCausalLM"),
        ("LlamaForCausalLM", "transformers", "TransformersForCausalLM"),
        ("HeliumForCausalLM", "auto", "TransformersForCausalLM"),
    ],
)
def test_architecture_selection(tmp_path: Path, arch: str, model_impl: str, expected: str) -> None:
    folder = write_checkpoint("llama", tmp_path)
    assert get_model_architecture(config_for(folder, arch, model_impl))[1] == expected


@pytest.mark.parametrize(
    ("arch", "model_impl"),
    [
        ("MadeUpForCausalLM", "auto"),
        ("MadeUpForCausalLM", "transformers"),
        ("HeliumForCausalLM", "sglang"),
        (
            "PaliGemmaForConditionalGeneration",
            "auto",
        ),  # transformers has it, but not as a text generator
        ("BloomForCausalLM", "auto"),  # its attention cannot be routed
    ],
)
def test_unsupported_architectures_are_refused(tmp_path: Path, arch: str, model_impl: str) -> None:
    folder = write_checkpoint("llama", tmp_path)
    words = rf"Model architectures \['{arch}'\] are not supported.*LlamaForCausalLM"
    with pytest.raises(ValueError, match=words):
        get_model_architecture(config_for(folder, arch, model_impl))
