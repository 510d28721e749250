"""What a start imports of transformers: no model classes, no torch compiler, and everything can be had afterwards as ever."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sglang.srt.utils import light_transformers

# What came in with one name: the loading of models, torch's compiler, its symbolic arithmetic.
HEAVY_MODULES = (
    "transformers.models.auto.modeling_auto",
    "transformers.modeling_utils",
    "transformers.activations",
    "transformers.core_model_loading",
)
HEAVY = (*HEAVY_MODULES, "torch._dynamo", "torch._inductor", "sympy")
# Older ones import torch's compiler wherever a class is chosen by its name.
LIGHT_AUTO_CLASSES = (5, 23)
CONFIGS = {
    "llama": {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "qwen3": {},
    "qwen3_moe": {"num_experts": 4},
    "gemma3_text": {},
    "qwen2_5_vl": {"vision_config": {"depth": 2}},
    "gemma3": {
        "text_config": {"model_type": "gemma3_text", "hidden_size": 48},
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 32},
    },
}

READ_CONFIGS = f"""
import json, sys
from sglang.srt.utils.hf_transformers_utils import get_config
types = [type(get_config(path)).__name__ for path in sys.argv[1:]]
heavy = [name for name in {HEAVY} if name in sys.modules]
# From here on like any program that uses transformers itself.
from transformers.utils import type_validators
before = type(type_validators.ACT2FN).__name__
knows = ["silu" in type_validators.ACT2FN, "no such" in type_validators.ACT2FN]
from transformers.activations import ACT2FN
from transformers import AutoModelForCausalLM, LlamaConfig
config = LlamaConfig(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8
)
model = AutoModelForCausalLM.from_config(config)
print(json.dumps([types, heavy, before, knows, type_validators.ACT2FN is ACT2FN, type(model).__name__]))
"""


def run(code, *arguments):
    """What a process of its own prints last, which has imported nothing before."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout.splitlines()[-1])


def write_config(folder, model_type, **settings):
    folder.mkdir()
    sizes = {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = {"model_type": model_type, **sizes, **settings}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_configs_bring_nothing_heavy_and_models_can_be_had_afterwards(tmp_path):
    folders = [write_config(tmp_path / name, name, **more) for name, more in CONFIGS.items()]
    types, heavy, before, knows, is_real, model = run(READ_CONFIGS, *folders)
    assert heavy == []
    assert types == [
        "LlamaConfig",
        "Qwen3Config",
        "Qwen3MoeConfig",
        "Gemma3TextConfig",
        "Qwen2_5_VLConfig",
        "Gemma3Config",
    ]
    assert before == "_Later", "the check of activations has the real table: nothing was saved"
    assert knows == [True, False] and is_real
    assert model == "LlamaForCausalLM"


READ_BESIDE_TORCHVISION = """
import json, sys
sys.path.insert(0, sys.argv[2])
from sglang.srt.utils.hf_transformers_utils import get_config
get_config(sys.argv[1])
found = ["torchvision" in sys.modules]
from transformers.utils import type_validators
type_validators.resampling_validator(None)
found.append("torchvision" in sys.modules)
try:
    type_validators.resampling_validator("bilinear")
except ValueError:
    found.append("torchvision" in sys.modules)
from transformers.image_utils import PILImageResampling
print(json.dumps([*found, type_validators.PILImageResampling is PILImageResampling]))
"""
TORCHVISION = {
    "__init__.py": "__version__ = '0.26.0'",
    "io.py": "class ImageReadMode: pass\ndef decode_image(image): pass",
    "transforms/__init__.py": """
import enum
names = "NEAREST NEAREST_EXACT BOX BILINEAR HAMMING BICUBIC LANCZOS"
InterpolationMode = enum.Enum("InterpolationMode", names)
""",
    "transforms/functional.py": "def pil_to_tensor(image): pass",
    "../torchvision-0.26.0.dist-info/METADATA": "Name: torchvision\nVersion: 0.26.0\n",
}


def test_a_config_does_not_import_torchvision(tmp_path):
    """It is installed on most GPU machines, and imports torch's compiler."""
    for name, text in TORCHVISION.items():
        path = tmp_path / "site" / "torchvision" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    folder = write_config(tmp_path / "llama", "llama")
    found = run(READ_BESIDE_TORCHVISION, folder, tmp_path / "site")
    assert found == [False, False, True, True]


READ_TOKENIZER = f"""
import json, sys
from sglang.srt.utils.hf_transformers_utils import get_tokenizer
tokenizer = get_tokenizer(sys.argv[1])
heavy = [name for name in {HEAVY_MODULES} if name in sys.modules]
from transformers import AutoModelForCausalLM
print(json.dumps([type(tokenizer).__name__, heavy, AutoModelForCausalLM.__name__]))
"""


def test_a_tokenizer_by_its_class_brings_no_model_classes(tmp_path):
    """transformers reads the model's config for it, here one with checks of its fields."""
    from tokenizers import Tokenizer, models

    folder = write_config(tmp_path / "llama", "llama")
    Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])).save(
        str(folder / "tokenizer.json")
    )
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    assert run(READ_TOKENIZER, folder) == ["Qwen2Tokenizer", [], "AutoModelForCausalLM"]


IMPORT_PROCESSORS = f"""
import json, sys
from sglang.srt.utils.light_transformers import import_processors
import_processors()
from transformers import AutoProcessor, ProcessorMixin
from transformers.models.auto.image_processing_auto import AutoImageProcessor
heavy = [name for name in {HEAVY} if name in sys.modules]
from transformers import processing_utils
base = processing_utils.PreTrainedAudioTokenizerBase
is_codec = isinstance(object(), base)
from transformers.modeling_utils import PreTrainedAudioTokenizerBase
is_real = processing_utils.PreTrainedAudioTokenizerBase is PreTrainedAudioTokenizerBase
import transformers
version = [int(part) for part in transformers.__version__.split(".")[:2]]
print(json.dumps([version, heavy, type(base).__name__, is_codec, is_real]))
"""


def test_processors_are_imported_without_the_loading_of_models():
    version, heavy, before, is_codec, is_real = run(IMPORT_PROCESSORS)
    unwanted = HEAVY if tuple(version) >= LIGHT_AUTO_CLASSES else HEAVY_MODULES
    assert set(heavy) & set(unwanted) == set()
    assert before == "_Later" and not is_codec and is_real


LIST_MODELS = """
import collections, json, os, sys
reads = collections.Counter()
def note(event, args):
    if event == "open" and isinstance(args[0], str):
        folder, name = os.path.split(args[0])
        if name.endswith(".py") and f"transformers{os.sep}models{os.sep}" in folder:
            reads[args[0]] += 1
sys.addaudithook(note)
if sys.argv[1] == "once":
    from sglang.srt.utils.light_transformers import import_model_names
    import_model_names()
import transformers.models
import transformers.utils.import_utils as import_utils
names = sorted(dir(transformers.models))
print(json.dumps([names, len(reads), max(reads.values()), import_utils.define_import_structure.__name__]))
"""


def test_names_of_models_are_read_once_and_are_the_same():
    names, files, most, function = run(LIST_MODELS, "once")
    plain_names, plain_files, _, plain_function = run(LIST_MODELS, "plain")
    assert len(names) > 1000 and names == plain_names
    assert files == plain_files > 1000
    assert most == 1
    assert function == plain_function == "define_import_structure"


@pytest.fixture
def hidden(monkeypatch):
    """A module in the place of the model classes, which is not imported yet."""
    monkeypatch.setattr(light_transformers, "_MODEL_CLASSES", "colorsys")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)


def test_a_config_that_needs_model_classes_gets_them(hidden):
    calls = []

    def build():
        calls.append(sys.modules.get("colorsys", "absent"))
        import colorsys

        return colorsys.ONE_THIRD

    assert light_transformers.without_model_classes(build) == pytest.approx(1 / 3)
    assert calls == [None, "absent"]
    # Now they are there, so that nothing is saved by hiding them.
    assert light_transformers.without_model_classes(build) == pytest.approx(1 / 3)
    assert len(calls) == 3 and calls[2] is sys.modules["colorsys"]


def test_other_errors_pass_and_nothing_stays_hidden(hidden):
    def build():
        raise ValueError("rope_parameters are wrong")

    with pytest.raises(ValueError, match="rope_parameters"):
        light_transformers.without_model_classes(build)
    assert "colorsys" not in sys.modules
