"""Reading a config imports no model classes of transformers, which are a thousand modules, and leaves them importable."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sglang.srt.utils import hf_transformers_utils as utils

CHECK = """
import sys
from sglang.srt.utils.hf_transformers_utils import get_config
config = get_config(sys.argv[1])
print(type(config).__name__, config.hidden_size, "transformers.models.auto.modeling_auto" in sys.modules)
from transformers import AutoModelForCausalLM
print(AutoModelForCausalLM.__name__)
"""


def test_a_config_is_read_without_model_classes(tmp_path):
    config = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 48}
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-c", CHECK, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["Qwen3Config", "48", "False", "AutoModelForCausalLM"]


@pytest.fixture
def hidden(monkeypatch):
    """A module in the place of the model classes, which is not imported yet."""
    monkeypatch.setattr(utils, "_MODEL_CLASSES", "colorsys")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)


def test_a_config_that_needs_model_classes_gets_them(hidden):
    calls = []

    def build():
        calls.append(sys.modules.get("colorsys", "absent"))
        import colorsys

        return colorsys.ONE_THIRD

    assert utils._without_model_classes(build) == pytest.approx(1 / 3)
    assert calls == [None, "absent"]
    # Now they are there, so that nothing is saved by hiding them.
    assert utils._without_model_classes(build) == pytest.approx(1 / 3)
    assert len(calls) == 3 and calls[2] is sys.modules["colorsys"]


def test_other_errors_pass_and_nothing_stays_hidden(hidden):
    def build():
        raise ValueError("rope_parameters are wrong")

    with pytest.raises(ValueError, match="rope_parameters"):
        utils._without_model_classes(build)
    assert "colorsys" not in sys.modules
