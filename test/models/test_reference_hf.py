"""`scripts/playground/reference_hf.py` on a tiny checkpoint."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
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


def test_the_correctness_test_of_bench_one_batch_says_the_same(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both tools on one checkpoint, as the guide has it: the same texts, and the same numbers where both show them."""
    write_checkpoint("llama", tmp_path, with_tokenizer=True)
    flags = ["--model-path", str(tmp_path), "--dtype", "float32", "--device", "cpu"]
    script.main(flags)
    theirs = _sections(capsys.readouterr().out)
    command = [sys.executable, "-m", "sglang.bench_one_batch", *flags, "--correct"]
    done = subprocess.run(
        [*command, "--max-total-tokens", "1024"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    head, *ours = _sections(done.stdout)
    _, _, final = head.partition("prefill logits (final): ")
    rows = [
        _numbers(row) for row in final.partition("[[")[2].split("],")
    ]  # summed up: ends of rows
    assert len(rows) == len(ours) == len(theirs) - 1 == len(CORRECTNESS_PROMPTS)
    for row, our_section, their_section in zip(rows, ours, theirs[1:], strict=True):
        logits, _, text = their_section.partition("])")
        shown = _numbers(logits)
        assert len(row) == 6 and len(shown) == 512
        assert row == pytest.approx([*shown[:3], *shown[-3:]], abs=2e-4)
        assert our_section.strip() == text.strip()


def _sections(printed: str) -> list[str]:
    """What is printed before the first prompt, and for each."""
    return re.split(r"========== Prompt \d ==========\n", printed)


def _numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+(?:e[+-]\d+)?", text)]


@pytest.mark.parametrize("model_type", ["vlm", "mllm"])
def test_images_are_shown_to_models_that_see(
    script: ModuleType, model_type: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The logits are those of the model behind its own prompt, and other pictures give others."""
    from sglang.test.hf_media import HFMediaModel
    from sglang.test.media_files import draw
    from sglang.test.tiny_vlm import write_vlm_twin

    folder = write_vlm_twin(tmp_path / "model")
    images = [draw("circle", "red"), draw("square", "blue")]
    flags = ["--dtype", "float32", "--device", "cpu", "--max-new-tokens", "3"]
    for index, image in enumerate(images):
        image.save(tmp_path / f"{index}.png")
        flags += ["--image", str(tmp_path / f"{index}.png")]
    script.main(["--model", folder, "--model-type", model_type, *flags])
    printed = capsys.readouterr().out
    model = HFMediaModel(folder)
    parts = [{"type": "image"}, {"type": "text", "text": script.QUESTION}]
    prompt = model.render([{"role": "user", "content": parts}])
    shown = []
    for index, image in enumerate(images):
        section = printed.partition(f"========== Image {index} ==========\n")[2]
        assert section.startswith("prefill logits (final) tensor([")
        numbers = section.partition("tensor([")[2].partition("])")[0].replace("\n", " ").split(",")
        shown.append(torch.tensor([float(number) for number in numbers if "..." not in number]))
        answer = model.answer(prompt, [image], max_new_tokens=3, ignore_eos=True)
        assert torch.allclose(shown[-1], answer.final_logits, atol=1e-4)
        assert prompt + answer.text in section
    assert not torch.allclose(shown[0], shown[1], atol=1e-2)


def test_an_image_that_is_none(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("no picture")
    with pytest.raises(SystemExit, match="--image: cannot identify"):
        script.main(["--model", "anything", "--model-type", "vlm", "--image", str(path)])
