"""`sglang verify` and `sglang new-model` as commands: exit status, report, and the name of what was broken on purpose."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from sglang.verify.tiny import tiny_config, write_tiny

PACKAGE = Path(__file__).resolve().parents[2] / "python"


def run(
    *words: str, cwd: Path, plugin: str | None = None, package: Path = PACKAGE
) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(package), str(cwd)]),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    if plugin is not None:
        env["SGLANG_EXTERNAL_MODEL_PACKAGE"] = plugin
    return subprocess.run(
        [sys.executable, "-m", "sglang.cli.main", *words],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def report_of(folder: Path) -> dict[str, Any]:
    report = json.loads((folder / "report.json").read_text())
    return {**report, "steps": {section["title"]: section for section in report["sections"]}}


def verify(*words: str, cwd: Path, plugin: str | None = None) -> tuple[int, dict[str, Any]]:
    """Exit status and report of a run without processes; no traceback may be printed."""
    quick = ("--no-ranks", "--no-speed", "--output", "out")
    done = run("verify", *words, *quick, cwd=cwd, plugin=plugin)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert "out/report.md" in done.stdout, done.stdout + done.stderr
    return done.returncode, report_of(cwd / "out")


def write_plugin(folder: Path, text: str) -> str:
    """A package with one model file; returns its name."""
    package = folder / "acme_models"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "llama_of_acme.py").write_text(text)
    return package.name


def test_tiny_llama_passes_with_all_its_files(tmp_path: Path) -> None:
    done = run("verify", "--tiny", "LlamaForCausalLM", "--output", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = report_of(tmp_path / "out")
    assert report["passed"] is True
    titles = ["checkpoint", "weights", "reference", "forms", "modules", "text", "ranks", "speed"]
    assert [(s["title"], s["passed"]) for s in report["sections"]] == [(t, True) for t in titles]
    names = {form["name"] for form in report["steps"]["forms"]["data"]["forms"]}
    for kind in ("whole", "chunks", "cached", "mixed", "retraction", "logprobs", "order", "16"):
        assert any(kind in name for name in names), kind
    assert report["steps"]["ranks"]["data"]["sizes"] == [2, 4]
    speed = report["steps"]["speed"]["data"]
    for side in ("engine", "reference"):
        assert all(value > 0 for value in speed[side].values())
    assert speed["engine_ids"] == speed["reference_ids"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "verification passed" in text and "| TTFT, ms |" in text
    plot = ElementTree.parse(tmp_path / "out" / "error_by_layer.svg")
    circles = plot.findall(".//{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 2 + 1  # two layers and the logits


WRONG_THETA = """
from sglang.srt.models import llama


class Layer(llama.LlamaDecoderLayer):
    def __init__(self, config, layer_id=0, quant_config=None, prefix=""):
        if layer_id == 1:
            config = type(config).from_dict(config.to_dict())
            config.rope_parameters = {"rope_type": "default", "rope_theta": 500.0}
        super().__init__(config, layer_id, quant_config, prefix)


class Model(llama.LlamaModel):
    layer_cls = Layer


class LlamaForCausalLM(llama.LlamaForCausalLM):
    model_cls = Model


EntryClass = LlamaForCausalLM
"""

SWAPPED_NORMS = """
from sglang.srt.models import llama


class LlamaForCausalLM(llama.LlamaForCausalLM):
    def load_weights(self, weights):
        return super().load_weights((SWAPS.get(name, name), tensor) for name, tensor in weights)


FIRST = "model.layers.1.input_layernorm.weight"
SECOND = "model.layers.1.post_attention_layernorm.weight"
SWAPS = {FIRST: SECOND, SECOND: FIRST}
EntryClass = LlamaForCausalLM
"""

NO_SUM = """
from sglang.srt.models import llama


class Layer(llama.LlamaDecoderLayer):
    def __init__(self, config, layer_id=0, quant_config=None, prefix=""):
        super().__init__(config, layer_id, quant_config, prefix)
        self.self_attn.o_proj.reduce_results = layer_id == 0


class Model(llama.LlamaModel):
    layer_cls = Layer


class LlamaForCausalLM(llama.LlamaForCausalLM):
    model_cls = Model


EntryClass = LlamaForCausalLM
"""

FIRST_NORM = "model.layers.1.input_layernorm.weight"

WRONG_VALUES = """
from sglang.srt.models import llama


class LlamaForCausalLM(llama.LlamaForCausalLM):
    def load_weights(self, weights):
        return super().load_weights(map(change, weights))


def change(pair):
    name, tensor = pair
    return name, tensor * 1.5 if name == "model.layers.1.self_attn.v_proj.weight" else tensor


EntryClass = LlamaForCausalLM
"""


def test_a_wrong_rope_theta_is_named(tmp_path: Path) -> None:
    """Position 0 is not rotated, so the first wrong token is 1, in the layer that has the wrong theta."""
    plugin = write_plugin(tmp_path, WRONG_THETA)
    status, report = verify("--tiny", "llama", cwd=tmp_path, plugin=plugin)
    assert status == 1 and report["passed"] is False
    assert "acme_models" in report["steps"]["checkpoint"]["summary"]
    assert report["steps"]["weights"]["passed"] is True
    assert report["steps"]["forms"]["passed"] is False
    first = report["steps"]["modules"]["data"]["first"]
    assert first["module"] == "model.layers.1.self_attn.attn"
    assert "rotation" in first["compared"]
    assert first["token"] == 1
    assert first["difference"] > 10 * first["bound"]
    assert "model.layers.1.self_attn.attn" in (tmp_path / "out" / "report.md").read_text()


def test_swapped_norms_are_named(tmp_path: Path) -> None:
    """Each norm got the other's weight: the sum that enters the first is right, its output is not."""
    plugin = write_plugin(tmp_path, SWAPPED_NORMS)
    status, report = verify("--tiny", "llama", cwd=tmp_path, plugin=plugin)
    assert status == 1
    first = report["steps"]["modules"]["data"]["first"]
    found = (first["module"], first["compared"], first["token"])
    assert found == ("model.layers.1.input_layernorm", "output", 0)
    assert f"loaded into a parameter of another name: {FIRST_NORM} -> " in str(
        report["steps"]["weights"]["summary"]
    )


def test_a_wrong_shard_is_named(tmp_path: Path) -> None:
    """One of the three shards of a fused projection has wrong values."""
    plugin = write_plugin(tmp_path, WRONG_VALUES)
    status, report = verify("--tiny", "llama", cwd=tmp_path, plugin=plugin)
    assert status == 1
    first = report["steps"]["modules"]["data"]["first"]
    assert (first["module"], first["shard"]) == ("model.layers.1.self_attn.qkv_proj", "v_proj")
    assert first["reference"] == "model.layers.1.self_attn.v_proj"


def test_ranks_that_do_not_sum_are_noticed(tmp_path: Path) -> None:
    """Everything is right on one rank; on several, one projection keeps its part to itself."""
    plugin = write_plugin(tmp_path, NO_SUM)
    words = ("verify", "--tiny", "llama", "--no-speed", "--output", "out")
    done = run(*words, cwd=tmp_path, plugin=plugin)
    assert done.returncode == 1, done.stdout + done.stderr
    steps = report_of(tmp_path / "out")["steps"]
    assert steps["forms"]["passed"] is True
    assert steps["ranks"]["passed"] is False
    assert "ranks" in steps["ranks"]["summary"]


def test_a_missing_tensor_is_named_and_the_rest_is_skipped(tmp_path: Path) -> None:
    folder = write_tiny("llama", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    status, report = verify(str(folder), cwd=tmp_path)
    assert status == 1
    weights = report["steps"]["weights"]
    assert weights["passed"] is False
    assert "model.layers.1.mlp.gate_up_proj" in weights["summary"]
    assert report["steps"]["forms"]["passed"] is None
    assert "step before it failed" in report["steps"]["forms"]["summary"]


@pytest.mark.parametrize("kind", ["tiny", "folder"])
def test_without_a_transformers_class_the_report_says_so(tmp_path: Path, kind: str) -> None:
    plugin = write_plugin(
        tmp_path,
        "from sglang.srt.models.llama import LlamaForCausalLM\n\n\n"
        "class AcmeForCausalLM(LlamaForCausalLM):\n    pass\n\n\nEntryClass = AcmeForCausalLM\n",
    )
    unknown = {"model_type": "acme", "architectures": ["AcmeForCausalLM"]}
    if kind == "tiny":
        path = tmp_path / "acme.json"
        path.write_text(json.dumps({**tiny_config("llama"), **unknown}))
        status, report = verify("--tiny", str(path), cwd=tmp_path, plugin=plugin)
        section = report["steps"]["checkpoint"]
    else:
        folder = write_tiny("llama", tmp_path / "model")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **unknown}))
        status, report = verify(str(folder), cwd=tmp_path, plugin=plugin)
        section = report["steps"]["reference"]
    assert status == 1
    assert section["passed"] is False
    assert "no causal language model for model_type 'acme'" in section["summary"]
    assert "no reference" in section["summary"]


def test_a_path_that_is_no_model_fails_with_a_sentence(tmp_path: Path) -> None:
    status, report = verify("./nowhere", cwd=tmp_path)
    assert status == 1
    assert "does not exist" in report["steps"]["checkpoint"]["summary"]


def test_a_new_model_passes_before_it_is_changed(tmp_path: Path) -> None:
    """In a copy of the checkout: model file, configuration, test and docs row; its own test and `verify` pass."""
    ignored = shutil.ignore_patterns("__pycache__", "demo_model", "*.egg-info")
    shutil.copytree(PACKAGE / "sglang", tmp_path / "python" / "sglang", ignore=ignored)
    package = tmp_path / "python"
    done = run("new-model", "acme", "--like", "mistral", cwd=tmp_path, package=package)
    assert done.returncode == 0, done.stderr
    for path in (
        "python/sglang/srt/models/acme.py",
        "python/sglang/verify/tiny_configs/acme.json",
        "test/models/test_acme.py",
        "docs/supported_models/text_generation/generative_models.md",
    ):
        assert (tmp_path / path).is_file(), path
    assert (
        "`AcmeForCausalLM`"
        in (tmp_path / "docs/supported_models/text_generation/generative_models.md").read_text()
    )
    words = ("verify", "--tiny", "AcmeForCausalLM", "--no-ranks", "--no-speed", "--output", "out")
    done = run(*words, cwd=tmp_path, package=package)
    assert done.returncode == 0, done.stdout + done.stderr
    served = report_of(tmp_path / "out")["steps"]["checkpoint"]["summary"]
    assert "sglang.srt.models.acme:AcmeForCausalLM" in served
    env = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    test = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test/models"]
    done = subprocess.run(test, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    again = run("new-model", "acme", "--like", "mistral", cwd=tmp_path, package=package)
    assert again.returncode == 2 and "already" in again.stderr


@pytest.mark.parametrize(
    "like", ["Qwen3ForCausalLM", "MixtralForCausalLM", "DeepseekV3ForCausalLM", "ChatGLMModel"]
)
def test_a_new_plugin_passes_before_it_is_changed(tmp_path: Path, like: str) -> None:
    """Dense, with experts, with latent attention, and a family whose reference is our own."""
    done = run("new-model", "my-model", "--like", like, "--plugin", ".", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "MyModelForCausalLM" in done.stdout
    status, report = verify("--tiny", "MyModelForCausalLM", cwd=tmp_path, plugin="sglang_my_model")
    assert status == 0, report
    assert "sglang_my_model.my_model" in report["steps"]["checkpoint"]["summary"]
