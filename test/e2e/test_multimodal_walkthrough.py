"""The guide's way to bring a model of one's own that sees: a class and its processor in one package, served and asked through `openai`.

The guide's class takes the square root of positive logits, its processor makes pictures grey. Both must show in the numbers: they are
those of transformers' model on the grey picture, put through the formula.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from server import running
from test_walkthroughs import block, on_path

from sglang.test.tiny_vlm import find_or_write_vlm

pytest.importorskip("PIL", reason="the front prepares images with Pillow")
openai = pytest.importorskip("openai")

TOP = 10  # logprobs that are compared
QUESTION = "What is this?"


def picture(seed: int) -> Any:
    """A PIL image of large random squares of colour; the guide's processor will see grey ones."""
    import numpy as np
    from PIL import Image

    squares = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(squares).resize((112, 112), Image.Resampling.NEAREST)


def data_url(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def messages(url: str) -> list[dict[str, Any]]:
    image = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [image, {"type": "text", "text": QUESTION}]}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2-VL whose config.json asks for `CustomQwen2VL`."""
    source = Path(find_or_write_vlm(tmp_path_factory.mktemp("model")))
    folder = tmp_path_factory.mktemp("custom")
    for path in source.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path)
    config = json.loads((source / "config.json").read_text())
    config |= {"architectures": ["CustomQwen2VL"], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def top_logprobs(checkpoint: Path, image: Any, is_rooted: bool) -> list[float]:
    """What transformers says comes first in the answer, best first; through the guide's formula when `is_rooted`."""
    import torch
    from transformers import AutoImageProcessor, AutoTokenizer, Qwen2VLForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False
    )
    pixels = AutoImageProcessor.from_pretrained(checkpoint)(images=[image], return_tensors="pt")
    rows = int(pixels["image_grid_thw"].prod()) // 4
    pad = "<|image_pad|>"
    ids = tokenizer.encode(text.replace(pad, pad * rows), add_special_tokens=False)
    input_ids = torch.tensor([ids])
    kinds = (input_ids == tokenizer.convert_tokens_to_ids(pad)).int()
    model = Qwen2VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        logits = model(input_ids=input_ids, mm_token_type_ids=kinds, **pixels).logits[0, -1]
    if is_rooted:
        logits = torch.where(logits > 0, logits.clamp(min=0).sqrt(), logits)
    return logits.log_softmax(-1).topk(TOP).values.tolist()


def check_server(checkpoint: Path, tmp_path: Path, env: dict[str, str], flags: list[str]) -> str:
    """Serve the checkpoint, ask about pictures, compare; returns the log."""
    args = ["--model-path", str(checkpoint), "--device", "cpu", "--enable-cache-report", *flags]
    log = tmp_path / "log"
    with running([*args, "--max-total-tokens", "1024"], log, env) as server:
        client = openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none")

        def ask(image: Any) -> tuple[list[float], Any]:
            answer = client.chat.completions.create(
                model="default",
                messages=messages(data_url(image)),
                max_tokens=2,
                temperature=0,
                logprobs=True,
                top_logprobs=TOP,
            )
            first = answer.choices[0].logprobs.content[0]
            return [item.logprob for item in first.top_logprobs], answer.usage

        check_answers(checkpoint, ask)
    return log.read_text()


def check_answers(checkpoint: Path, ask: Callable[[Any], tuple[list[float], Any]]) -> None:
    from PIL import ImageOps

    image, other = picture(1), picture(2)
    grey = ImageOps.grayscale(image).convert("RGB")
    found, usage = ask(image)
    assert found == pytest.approx(top_logprobs(checkpoint, grey, True), abs=2e-3)
    # It would prove nothing if the class or the processor hardly changed the numbers.
    assert found != pytest.approx(top_logprobs(checkpoint, grey, False), abs=1e-2)
    assert found != pytest.approx(top_logprobs(checkpoint, image, True), abs=1e-2)
    assert usage.prompt_tokens_details is None or usage.prompt_tokens_details.cached_tokens == 0
    again, cached = ask(image)
    assert again == pytest.approx(found, abs=2e-3)
    assert cached.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1
    _, cached = ask(grey)  # the same after the guide's processor
    assert cached.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1
    different, cached = ask(other)
    assert different != pytest.approx(found, abs=1e-2)
    # Only what stands before the picture is shared.
    assert cached.prompt_tokens_details.cached_tokens < usage.prompt_tokens // 2


def write_package(site: Path) -> None:
    package = site / "custom_vlm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "custom_qwen2_vl.py").write_text(block("custom_qwen2_vl.py"))


def test_package_named_by_three_variables(checkpoint: Path, tmp_path: Path) -> None:
    write_package(tmp_path / "site")
    variables = [
        line.removeprefix("export ").partition("=")
        for line in block("custom_vlm").splitlines()
        if line.startswith("export ")
    ]
    assert len(variables) == 3
    env = {**on_path(tmp_path / "site"), **{name: value for name, _, value in variables}}
    log = check_server(checkpoint, tmp_path, env, ["--enable-multimodal"])
    assert "CustomQwen2VL is served by the package custom_vlm" in log


@pytest.mark.skipif(
    find_spec("pip") is None or find_spec("setuptools") is None, reason="needs pip and setuptools"
)
def test_plugin_needs_nothing_else(checkpoint: Path, tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    write_package(source)
    (source / "pyproject.toml").write_text(block("pyproject.toml of a model that sees"))
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", str(site)]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, *options, str(source)], check=True, timeout=120)
    log = check_server(checkpoint, tmp_path, on_path(site), [])
    assert "CustomQwen2VL is served by the plug-in 'CustomQwen2VL' of custom-vlm 1.0" in log
