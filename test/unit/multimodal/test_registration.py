"""How processors are found: built in, in a package that a variable names, as an installed plug-in."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from plugin_package import write_package

from sglang.srt.environ import envs
from sglang.srt.managers import multimodal_processor
from sglang.srt.managers.multimodal_processor import (
    PROCESSOR_MAPPING,
    get_mm_processor,
    import_processors,
    load_all_processors,
)
from sglang.srt.multimodal.inputs import Modality
from sglang.srt.multimodal.processors.base_processor import (
    BaseMultimodalProcessor,
    MultimodalSpecialTokens,
)
from sglang.srt.multimodal.processors.placeholders import MediaPlaces, expand_placeholders
from sglang.srt.plugins import Plugin
from sglang.srt.utils.errors import RequestError


@pytest.fixture(autouse=True)
def fresh_mapping():
    saved = dict(PROCESSOR_MAPPING)
    yield
    PROCESSOR_MAPPING.clear()
    PROCESSOR_MAPPING.update(saved)


def names():
    return {
        m if isinstance(m, str) else m.__name__: cls.__name__
        for m, cls in PROCESSOR_MAPPING.items()
    }


def test_built_in_processors_are_found():
    load_all_processors()
    assert names()["Qwen2VLForConditionalGeneration"] == "QwenVLImageProcessor"


def test_a_package_of_ones_own(tmp_path, monkeypatch, caplog):
    write_package(tmp_path, "custom_vlm_a")
    monkeypatch.syspath_prepend(str(tmp_path))
    with envs.SGLANG_EXTERNAL_MM_PROCESSOR_PACKAGE.override("custom_vlm_a"):
        with caplog.at_level(logging.WARNING):
            load_all_processors()
    assert names()["CustomQwen2VL"] == "CustomProcessor"
    assert "custom_vlm_a.broken" in caplog.text


def test_an_installed_plugin(tmp_path, monkeypatch):
    write_package(tmp_path, "custom_vlm_b")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins = {"sglang.processors": [Plugin("mine", "custom_vlm_b", "", "")]}
    monkeypatch.setattr(multimodal_processor, "find_plugins", lambda group: plugins[group])
    load_all_processors()
    assert names()["CustomQwen2VL"] == "CustomProcessor"


def test_a_plugins_name_says_which_architecture_takes_media(monkeypatch):
    from sglang.srt.configs import model_config

    assert not model_config.is_multimodal_model(["CustomQwen2VL"])
    points = [Plugin("CustomQwen2VL", "a_package_that_is_not_imported", "", "")]
    plugins = {"sglang.processors": points}
    monkeypatch.setattr(model_config, "find_plugins", lambda group: plugins[group])
    assert model_config.is_multimodal_model(["CustomQwen2VL"])
    assert not model_config.is_multimodal_model(["LlamaForCausalLM"])


def test_later_packages_override_by_name_only_when_asked(tmp_path, monkeypatch):
    PROCESSOR_MAPPING["CustomQwen2VL"] = BaseMultimodalProcessor
    write_package(tmp_path, "custom_vlm_c")
    monkeypatch.syspath_prepend(str(tmp_path))
    import_processors("custom_vlm_c")
    assert names()["CustomQwen2VL"] == "BaseMultimodalProcessor"
    import_processors("custom_vlm_c", overwrite=True)
    assert names()["CustomQwen2VL"] == "CustomProcessor"


def test_unknown_architectures_are_named():
    config = SimpleNamespace(architectures=["NoSuchModel"])
    with pytest.raises(
        ValueError, match=r"no processor registered for .*NoSuchModel.*; registered"
    ):
        get_mm_processor(config, None, None)


# --- helpers that authors call


def test_offsets_of_tokens():
    offsets = BaseMultimodalProcessor.get_mm_items_offset([1, 2, 3, 3, 3, 4, 3, 3], 3)
    assert offsets == [(2, 4), (6, 7)]
    pairs = BaseMultimodalProcessor.get_mm_items_offset_by_pair([1, 9, 3, 3, 8, 9, 3, 8], 9, 8)
    assert pairs == [(2, 3), (6, 6)]


def test_special_tokens_derive_what_is_missing():
    texts = {7: "<img>", 8: "<snd>"}
    tokenizer = SimpleNamespace(convert_ids_to_tokens=lambda ids: [texts[i] for i in ids])
    tokens = MultimodalSpecialTokens(image_token_id=7, audio_token_id=8)
    tokens.build(SimpleNamespace(tokenizer=tokenizer))
    assert tokens.get_combined_regex().split("a<img>b<snd>") == ["a", "<img>", "b", "<snd>", ""]
    assert tokens.get_modality_of_token("<snd>") is Modality.AUDIO
    assert tokens.get_modality_of_token("a") is None
    assert tokens.get_token_id_by_modality(Modality.MULTI_IMAGES) == 7


def expand(ids, *counts, token=9, joins_runs=False):
    return expand_placeholders(
        ids, [MediaPlaces(Modality.IMAGE, token, token, [[token] * n for n in counts], joins_runs)]
    )


@pytest.mark.parametrize(
    ("ids", "counts", "expected", "offsets"),
    [
        ([1, 9, 2], (3,), [1, 9, 9, 9, 2], [(1, 3)]),
        ([9, 9], (2, 1), [9, 9, 9], [(0, 1), (2, 2)]),
        ([1, 9, 9, 9], (3,), [1, 9, 9, 9], [(1, 3)]),
        ([9, 9, 1, 9], (2, 1), [9, 9, 1, 9], [(0, 1), (3, 3)]),
    ],
)
def test_placeholders_are_replaced(ids, counts, expected, offsets):
    prompt = expand(ids, *counts)
    assert (prompt.input_ids, prompt.offsets[Modality.IMAGE]) == (expected, offsets)


def test_a_run_may_stand_for_one_medium():
    ids = [9, 9, 9, 1, 9, 9]
    prompt = expand(ids, 1, 4, joins_runs=True)
    assert prompt.input_ids == [9, 1, 9, 9, 9, 9]
    assert prompt.offsets[Modality.IMAGE] == [(0, 0), (2, 5)]
    with pytest.raises(RequestError, match="5 placeholders for 2"):
        expand(ids, 1, 4)


@pytest.mark.parametrize(("ids", "counts"), [([1], (2,)), ([9, 1, 9], (2,)), ([9], (1, 1))])
def test_numbers_must_agree(ids, counts):
    with pytest.raises(RequestError, match="placeholders for"):
        expand(ids, *counts)


def test_rows_may_stand_among_other_tokens():
    places = MediaPlaces(Modality.IMAGE, 5, 9, [[8, 9, 9, 7]])
    prompt = expand_placeholders([1, 5, 2], [places])
    assert prompt.input_ids == [1, 8, 9, 9, 7, 2] and prompt.offsets[Modality.IMAGE] == [(2, 3)]
