"""The texts of a new model that takes media: a class and a processor that extend another model's, and their test."""

from __future__ import annotations

from sglang.srt.managers.multimodal_processor import PROCESSOR_MAPPING, load_all_processors
from sglang.srt.models.registry import ModelRegistry
from sglang.srt.utils.errors import ConfigError

_MODEL = '''"""{camel}, so far {like} under another name, with its processor.

Override what differs (docs/add_a_model_that_sees.md): `make_tower`, `get_image_feature`, `pad_input_ids` and `weight_map` of the
model, `replacements` and `image_features` of the processor. `sglang verify` finds the prompts of {like}'s family.
"""

from __future__ import annotations

from {model_module} import {like}
from {processor_module} import {processor}


class {architecture}({like}):
    """The language model with its tower."""


class {camel}Processor({processor}):
    """What becomes of the media of a request."""

    models = [{architecture}]


EntryClass = {architecture}
'''

_TEST = '''"""{camel}: the tiny model with media and without against transformers, and its weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang.srt.configs.model_config import ModelConfig, is_multimodal_model
from sglang.verify.coverage import measure_coverage
from sglang.verify.forms import Form, forms_named
from sglang.verify.media import MediaProof, require_family
from sglang.verify.media_forms import media_forms
from sglang.verify.media_tiny import write_media_config
from sglang.verify.tiny import tiny_config

NAME = "{architecture}"
RAW = tiny_config(NAME)
FAMILY = require_family([NAME])
FORMS = [*forms_named(["whole prefill"]), *media_forms(FAMILY.prompts(RAW))[:4]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_media_config(RAW, tmp_path_factory.mktemp("{name}"))


@pytest.fixture(scope="module")
def proof(folder: Path) -> MediaProof:
    assert is_multimodal_model([NAME]), "pip install -e . announces that the model takes media"
    return MediaProof(str(folder), FAMILY, RAW)


@pytest.mark.parametrize("form", FORMS, ids=[form.name for form in FORMS])
def test_form(proof: MediaProof, form: Form) -> None:
    result = proof.run(form)
    assert result.passed, result.detail


def test_every_tensor_and_parameter_is_accounted_for(folder: Path) -> None:
    found = measure_coverage(str(folder), ModelConfig(str(folder), dtype="float32"))
    assert found.passed, (found.unfilled, found.not_accounted)
'''

PROCESSOR_ENTRY = """
[project.entry-points."sglang.processors"]
{architecture} = "{package}"
"""


def media_model_text(architecture: str, camel: str, like: str) -> str:
    """The file of model and processor. Raises ConfigError when `like` has no processor."""
    load_all_processors()
    named = {m if isinstance(m, str) else m.__name__: cls for m, cls in PROCESSOR_MAPPING.items()}
    if like not in named:
        raise ConfigError(f"{like} has no processor to extend; those that have are {sorted(named)}")
    return _MODEL.format(
        camel=camel,
        like=like,
        architecture=architecture,
        model_module=ModelRegistry.models[like].__module__,
        processor_module=named[like].__module__,
        processor=named[like].__name__,
    )


def media_test_text(architecture: str, camel: str, name: str) -> str:
    return _TEST.format(architecture=architecture, camel=camel, name=name)
