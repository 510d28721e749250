"""Plug-ins, external packages and classes of the user's program: who wins, what is said, what is refused."""

from __future__ import annotations

import logging

import pytest
from plugin_files import CLASS_FILE, Site

from sglang.srt.environ import envs
from sglang.srt.models.llama import LlamaForCausalLM
from sglang.srt.models.registry import _Registry
from sglang.srt.utils.errors import ConfigError

BROKEN = (
    "import a_package_that_is_not_there\n\n\nclass {name}:\n    pass\n\n\nEntryClass = {name}\n"
)
FUNCTION = """
from sglang.srt.models.registry import ModelRegistry

class ByFunction:
    pass

def register():
    ModelRegistry.models["ByFunction"] = ByFunction
"""


class Mine:
    """A class that workers can import."""


# --- entry points


@pytest.mark.parametrize(
    "value", ["acme", "acme.model", "acme.model:AcmeForCausalLM", "acme.model:EntryClass"]
)
def test_installed_plugin_is_found(site: Site, value: str) -> None:
    site.package("acme", model=CLASS_FILE.format(name="AcmeForCausalLM"))
    site.install("acme-models", acme=value)
    registry = _Registry()
    cls, name = registry.resolve_model_cls(["AcmeForCausalLM"])
    assert (cls.__module__, name) == ("acme.model", "AcmeForCausalLM")
    source = registry.source_of(name)
    assert source.kind == "plug-in" and "'acme' of acme-models 1.0" in source.label
    assert registry.problems == []


def test_plugin_of_another_group_is_left_alone(site: Site) -> None:
    site.package("acme", model="raise RuntimeError('imported')\n")
    site.install("acme-models", group="other.models", acme="acme")
    assert _Registry().problems == []


def test_plugin_may_be_a_function(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.package("acme", init=FUNCTION)
    site.install("acme-models", acme="acme:register")
    registry = _Registry()
    monkeypatch.setattr("sglang.srt.models.registry.ModelRegistry", registry)
    assert registry.models["ByFunction"].__module__ == "acme"
    assert registry.source_of("ByFunction").kind == "plug-in"


@pytest.mark.parametrize("value", ["acme", "acme.model:AcmeForCausalLM"])
def test_broken_plugin_stops_only_its_own_model(
    site: Site, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    site.package("acme", model=BROKEN.format(name="AcmeForCausalLM"))
    site.install("acme-models", acme=value)
    registry = _Registry()
    for _ in range(2):
        assert registry.resolve_model_cls(["LlamaForCausalLM"])[0] is LlamaForCausalLM
    said = [r.getMessage() for r in caplog.records if "a_package_that_is_not_there" in r.message]
    assert len(said) == 1 and "acme-models" in said[0]
    with pytest.raises(
        ValueError, match=r"AcmeForCausalLM.*failed to be inspected.*acme-models.*not_there"
    ):
        registry.resolve_model_cls(["AcmeForCausalLM"])


def test_plugin_that_is_not_there_at_all(site: Site) -> None:
    site.install("acme-models", acme="a_module_that_is_not_there")
    (problem,) = _Registry().problems
    assert "acme-models" in problem and "ModuleNotFoundError" in problem


def test_plugin_does_not_take_a_builtin_name(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.package("acme", model=CLASS_FILE.format(name="LlamaForCausalLM"))
    site.install("acme-models", acme="acme")
    registry = _Registry()
    assert registry.resolve_model_cls("LlamaForCausalLM")[0] is LlamaForCausalLM
    assert "built-in class stays (SGLANG_EXTERNAL_MODEL_PACKAGE=acme " in caplog.text
    with envs.SGLANG_EXTERNAL_MODEL_PACKAGE.override(("acme",)):
        assert _Registry().models["LlamaForCausalLM"].__module__ == "acme.model"


def test_two_plugins_with_one_name(site: Site) -> None:
    for name in ("acme", "bolt"):
        site.package(name, model=CLASS_FILE.format(name="SharedForCausalLM"))
        site.install(f"{name}-models", **{name: name})
    registry = _Registry()
    assert registry.resolve_model_cls("LlamaForCausalLM")[0] is LlamaForCausalLM
    with pytest.raises(ValueError, match="acme-models.*bolt-models"):
        registry.resolve_model_cls("SharedForCausalLM")
    with envs.SGLANG_EXTERNAL_MODEL_PACKAGE.override(("bolt",)):
        assert _Registry().models["SharedForCausalLM"].__module__ == "bolt.model"


def test_unused_plugin_is_named_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    site.package("acme", model=CLASS_FILE.format(name="AcmeForCausalLM"))
    site.install("acme-models", acme="acme")
    registry = _Registry()
    for _ in range(2):
        registry.resolve_model_cls("LlamaForCausalLM")
    assert caplog.text.count("Nobody asks for AcmeForCausalLM") == 1


def test_disabled_plugin_is_not_imported(site: Site) -> None:
    site.package("acme", model="raise RuntimeError('imported')\n")
    site.install("acme-models", acme="acme")
    with envs.SGLANG_DISABLED_MODEL_ARCHS.override(("acme",)):
        assert _Registry().problems == []
    assert len(_Registry().problems) == 1


# --- packages of the environment variable


def test_two_external_packages(site: Site) -> None:
    site.package("first", model=CLASS_FILE.format(name="LlamaForCausalLM"))
    site.package("second", one=CLASS_FILE.format(name="OneForCausalLM"))
    with envs.SGLANG_EXTERNAL_MODEL_PACKAGE.override(("first", "second")):
        registry = _Registry()
    with envs.SGLANG_EXTERNAL_MODEL_PACKAGE.override(("first", "second")):
        assert registry.models["LlamaForCausalLM"].__module__ == "first.model"
    assert registry.models["OneForCausalLM"].__module__ == "second.one"


def test_external_plain_module_and_reexport(site: Site) -> None:
    (site.folder / "plain.py").write_text(CLASS_FILE.format(name="PlainForCausalLM"))
    site.package(
        "reexport",
        init="from reexport.model import EntryClass\n",
        model=CLASS_FILE.format(name="ReForCausalLM"),
    )
    with envs.SGLANG_EXTERNAL_MODEL_PACKAGE.override(("plain", "reexport")):
        models = _Registry().models
    assert {"PlainForCausalLM", "ReForCausalLM"} <= set(models)


def test_broken_external_file_does_not_fall_back_to_the_builtin_silently(site: Site) -> None:
    site.package("mine", model=BROKEN.format(name="LlamaForCausalLM"))
    with envs.SGLANG_EXTERNAL_MODEL_PACKAGE.override(("mine",)):
        registry = _Registry()
        assert registry.resolve_model_cls("Qwen3ForCausalLM")[1] == "Qwen3ForCausalLM"
    with pytest.raises(ValueError, match="failed to be inspected.*mine.model.*not_there"):
        registry.resolve_model_cls("LlamaForCausalLM")


def test_entry_class_of_a_wrong_kind(site: Site) -> None:
    site.package("mine", model='EntryClass = "LlamaForCausalLM"\n')
    with envs.SGLANG_EXTERNAL_MODEL_PACKAGE.override(("mine",)):
        problems = _Registry().problems
    assert "EntryClass of mine.model must be a class or a list of classes" in problems[0]


# --- classes of the user's program, carried to workers


def adopted(paths: dict[str, str]) -> _Registry:
    worker = _Registry()
    worker.adopt(paths)
    return worker


def test_untouched_registry_carries_nothing() -> None:
    registry = _Registry()
    assert registry.assigned_paths() == {}
    assert "LlamaForCausalLM" in registry.models
    assert registry.assigned_paths() == {}


@pytest.mark.parametrize("how", ["assign", "update", "setdefault"])
def test_assigned_class_reaches_a_worker_by_path(how: str) -> None:
    main = _Registry()
    if how == "assign":
        main.models["Wrapper"] = Mine
    elif how == "update":
        main.models.update({"Wrapper": Mine})
    else:
        main.models.setdefault("Wrapper", Mine)
    paths = main.assigned_paths()
    assert paths == {"Wrapper": f"{__name__}:Mine"}
    assert adopted(paths).resolve_model_cls("Wrapper") == (Mine, "Wrapper")


def test_registered_package_reaches_a_worker(site: Site) -> None:
    site.package("acme", model=CLASS_FILE.format(name="AcmeForCausalLM"))
    main = _Registry()
    main.register("acme")
    assert adopted(main.assigned_paths()).models["AcmeForCausalLM"].__module__ == "acme.model"


def test_override_of_a_builtin_reaches_a_worker() -> None:
    main = _Registry()
    main.models["LlamaForCausalLM"] = Mine
    worker = adopted(main.assigned_paths())
    assert worker.models["LlamaForCausalLM"] is Mine
    assert worker.models["Qwen3ForCausalLM"].__name__ == "Qwen3ForCausalLM"


def test_class_that_cannot_be_imported_says_what_to_do() -> None:
    class Local:
        pass

    main = _Registry()
    main.models["Local"] = Local
    worker = adopted(main.assigned_paths())
    assert worker.resolve_model_cls("LlamaForCausalLM")[0] is LlamaForCausalLM
    with pytest.raises(ValueError, match=r"Local.*cannot import.*top level"):
        worker.resolve_model_cls("Local")


def test_what_the_worker_registered_itself_serves_where_the_path_does_not() -> None:
    class Local:
        pass

    worker = _Registry()
    worker.models["Local"] = Local  # the script ran again in the worker
    worker.adopt({"Local": "somewhere:make.<locals>.Local"})
    assert worker.models["Local"] is Local


def test_assigned_value_must_be_a_class() -> None:
    main = _Registry()
    main.models["Number"] = 3
    with pytest.raises(ConfigError, match="'Number'.*3.*must be a model class"):
        main.assigned_paths()


def test_copies_of_the_table_hold_classes() -> None:
    table = _Registry().models
    assert dict(table)["LlamaForCausalLM"] is LlamaForCausalLM
    assert {**table}["LlamaForCausalLM"] is LlamaForCausalLM
