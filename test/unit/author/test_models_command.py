"""`sglang models`: the table, and what would serve one checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_files import CLASS_FILE, Site

import sglang
from sglang.cli import models as command
from sglang.srt.models.registry import _Registry

DEMO = Path(sglang.__file__).parent / "demo_model"
SUBCLASS = """
from sglang.srt.models.qwen3 import Qwen3ForCausalLM


class AcmeForCausalLM(Qwen3ForCausalLM):
    def __init__(self, config, quant_config=None, prefix=""):
        {init}super().__init__(config, quant_config, prefix)


EntryClass = AcmeForCausalLM
"""


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test builds its own table, as a new process would."""
    registry = _Registry()
    monkeypatch.setattr(command, "ModelRegistry", registry)
    monkeypatch.setattr("sglang.srt.models.registry.ModelRegistry", registry)
    monkeypatch.setattr("sglang.srt.model_loader.utils.ModelRegistry", registry)


def checkpoint(tmp_path: Path, **changes: object) -> str:
    """A config.json alone: explaining reads no weights."""
    config = json.loads((DEMO / "config.json").read_text())
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return str(folder)


def run(capsys: pytest.CaptureFixture, *words: str) -> tuple[int, str]:
    code = command.main(words, "sglang models")
    return code, capsys.readouterr().out


def test_list_names_file_and_plugin(site: Site, fresh: None, capsys) -> None:
    site.package("acme", model=CLASS_FILE.format(name="AcmeForCausalLM"), bad="import no_such_x\n")
    site.install("acme-models", acme="acme")
    code, text = run(capsys, "list")
    rows = {line.split()[0]: line for line in text.splitlines()}
    assert code == 0
    assert "sglang.srt.models.llama:LlamaForCausalLM" in rows["LlamaForCausalLM"]
    assert "acme.model:AcmeForCausalLM" in rows["AcmeForCausalLM"]
    assert "acme-models 1.0" in rows["AcmeForCausalLM"]
    assert "acme.bad" in rows["note:"] and "no_such_x" in rows["note:"]
    code, text = run(capsys, "list", "--json")
    table = json.loads(text)
    assert {"AcmeForCausalLM", "Qwen2ForCausalLM"} <= {r["architecture"] for r in table["models"]}
    assert len(table["notes"]) == 1


def test_explain_builtin(fresh: None, capsys) -> None:
    code, text = run(capsys, "explain", str(DEMO), "--json")
    answer = json.loads(text)
    assert code == 0
    assert answer["served_by"] == "Qwen3ForCausalLM" and answer["source"] == "built-in"
    assert answer["file"].endswith("models/qwen3.py")
    assert answer["refusals"] == []


def test_explain_plugin(site: Site, fresh: None, tmp_path: Path, capsys) -> None:
    site.package("acme", model=SUBCLASS.format(init=""))
    site.install("acme-models", acme="acme")
    code, text = run(capsys, "explain", checkpoint(tmp_path, architectures=["AcmeForCausalLM"]))
    assert code == 0
    assert "plug-in 'acme' of acme-models 1.0" in text and "acme/model.py" in text


def test_explain_fallback(fresh: None, tmp_path: Path, capsys) -> None:
    code, text = run(capsys, "explain", str(DEMO), "--model-impl", "transformers")
    assert code == 0 and "served by      TransformersForCausalLM" in text
    assert "--model-impl transformers asks for" in text


def test_explain_constructor_that_raises(site: Site, fresh: None, tmp_path: Path, capsys) -> None:
    site.package("acme", model=SUBCLASS.format(init="raise KeyError('my_key'); "))
    site.install("acme-models", acme="acme")
    code, text = run(capsys, "explain", checkpoint(tmp_path, architectures=["AcmeForCausalLM"]))
    assert code == 1 and "refused" in text and "KeyError: 'my_key'" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"architectures": ["NoSuchModel"]},
            "Model architectures ['NoSuchModel'] are not supported",
        ),
        ({"architectures": []}, "names no architectures"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"quantization_config": {"quant_method": "made-up"}}, "made-up"),
    ],
)
def test_explain_refusals(fresh: None, tmp_path: Path, capsys, changes: dict, words: str) -> None:
    code, text = run(capsys, "explain", checkpoint(tmp_path, **changes))
    assert code == 1 and words in text


def test_wrong_command_line(capsys) -> None:
    assert command.main([], "sglang models") == 2
    assert command.main(["--help"], "sglang models") == 0
    assert "explain" in capsys.readouterr().out


def test_a_reader_that_leaves_early_is_no_error() -> None:
    words = [sys.executable, "-m", "sglang.cli.main", "models", "list"]
    env = {**os.environ, "PYTHONPATH": str(DEMO.parents[1])}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 0
