"""`scripts/playground/reference_hf.py` on a tiny checkpoint."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from models.tiny import write_checkpoint

from sglang.test.prompts import CORRECTNESS_PROMPTS
from sglang.verify.reference import ReferenceModel

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "playground" / "reference_hf.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference_hf", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_prints_logits_and_greedy_text(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    write_checkpoint("llama", tmp_path, with_tokenizer=True)
    flags = ["--dtype", "float32", "--device", "cpu", "--max-new-tokens", "5"]
    script.main(["--model-path", str(tmp_path), *flags])
    printed = capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    reference = ReferenceModel(str(tmp_path))
    assert len(CORRECTNESS_PROMPTS) == 3
    for index, prompt in enumerate(CORRECTNESS_PROMPTS):
        _, _, section = printed.partition(f"========== Prompt {index} ==========\n")
        expected = reference.greedy(tokenizer.encode(prompt), 5)
        final = expected.logits[len(expected.prompt_ids) - 1]
        assert section.startswith("prefill logits (final) tensor([")
        numbers = section.partition("tensor([")[2].partition("])")[0].replace("\n", " ").split(",")
        shown = torch.tensor([float(number) for number in numbers])
        assert torch.allclose(shown, final, atol=1e-4)
        text = tokenizer.decode([*expected.prompt_ids, *expected.output_ids])
        assert text in section and text.startswith(prompt)


@pytest.mark.parametrize("model_type", ["vlm", "mllm"])
def test_other_model_types_say_so(script: ModuleType, model_type: str) -> None:
    with pytest.raises(SystemExit, match="not available yet.*use --model-type text"):
        script.main(["--model", "anything", "--model-type", model_type])
