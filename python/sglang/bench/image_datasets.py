"""Prompts with pictures for the serving benchmark: random pictures, or the questions of MMMU."""

from __future__ import annotations

import argparse
import base64
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sglang.bench.datasets import BenchRequest, DatasetArgs, PromptMaker
from sglang.srt.utils.errors import ConfigError

IMAGE_DATASETS = ("image", "mmmu")
_RESOLUTIONS = {"4k": (2160, 3840), "1080p": (1080, 1920), "720p": (720, 1280), "360p": (360, 640)}
_LEAST, _MOST = 1, 16384  # pixels of a side
_MMMU, _MMMU_SUBJECT = "MMMU/MMMU", "Math"


@dataclasses.dataclass
class ImageArgs:
    """The flags of pictures. `image_resolution`: a name, or HxW in pixels."""

    image_count: int = 1
    image_resolution: str = "1080p"
    random_image_count: bool = False
    image_format: str = "jpeg"
    image_content: str = "random"

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument_group("pictures").add_argument
        add("--image-count", type=int, default=1, help="pictures of a request")
        add("--image-resolution", default="1080p", help="4k, 1080p, 720p, 360p or HxW")
        add("--random-image-count", action="store_true", help="from 1 to --image-count")
        add("--image-format", choices=("jpeg", "png"), default="jpeg")
        add("--image-content", choices=("random", "blank"), default="random")

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> ImageArgs:
        return cls(**{field.name: getattr(args, field.name) for field in dataclasses.fields(cls)})

    @property
    def size(self) -> tuple[int, int]:
        """(height, width). Raises ConfigError."""
        if self.image_resolution in _RESOLUTIONS:
            return _RESOLUTIONS[self.image_resolution]
        high, _, wide = self.image_resolution.lower().partition("x")
        if high.isdigit() and wide.isdigit():
            size = (int(high), int(wide))
            if all(_LEAST <= side <= _MOST for side in size):
                return size
        raise ConfigError(
            f"--image-resolution {self.image_resolution!r} is none of {', '.join(_RESOLUTIONS)} and no HEIGHTxWIDTH "
            f"from {_LEAST} to {_MOST}"
        )


def sample_image_requests(
    args: DatasetArgs, images: ImageArgs, tokenizer: Any
) -> list[BenchRequest]:
    """The requests of a run, the same for the same flags. Raises ConfigError for flags and data that do not work."""
    if images.image_count < 1:
        raise ConfigError(f"--image-count {images.image_count} must be at least 1")
    if args.tokenize_prompt:
        raise ConfigError("--tokenize-prompt: prompts with pictures are texts; leave it out")
    if args.dataset_name == "mmmu":
        questions = _mmmu(args)
    else:
        questions = _random(args, images, PromptMaker(args, tokenizer))
    maker = PromptMaker(args, tokenizer)
    outputs = maker.lengths(args.random_output_len, args.random_range_ratio, args.num_prompts)
    return [
        _request(tokenizer, text + args.prompt_suffix, urls, output)
        for (text, urls), output in zip(questions, outputs, strict=False)
    ]


def _request(tokenizer: Any, text: str, urls: list[str], output_len: int) -> BenchRequest:
    """Both as chat messages and as a text with the model's placeholders, where its tokenizer has a template."""
    words = {"type": "text", "text": text}
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    try:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": [*({"type": "image"} for _ in urls), words]}],
            add_generation_prompt=True,
            tokenize=False,
        )
    except ValueError:  # the server may have one of its own
        prompt = text
    first = tokenizer.bos_token_id
    if first is not None and tokenizer.encode(prompt)[:2] == [first, first]:
        prompt = prompt.removeprefix(tokenizer.bos_token)  # the server adds it again
    length = len(tokenizer.encode(text, add_special_tokens=False))
    messages = [{"role": "user", "content": [*parts, words]}]
    return BenchRequest(prompt, length, output_len, messages=messages, images=tuple(urls))


def _random(
    args: DatasetArgs, images: ImageArgs, maker: PromptMaker
) -> Iterator[tuple[str, list[str]]]:
    size, most = images.size, images.image_count
    lengths = maker.lengths(args.random_input_len, args.random_range_ratio, args.num_prompts)
    for length in lengths:
        count = int(maker.rng.integers(1, most + 1)) if images.random_image_count else most
        urls = [_picture(images, size, maker.rng) for _ in range(count)]
        yield maker.random_text(length), urls


def _picture(images: ImageArgs, size: tuple[int, int], rng: np.random.Generator) -> str:
    """A data URL."""
    from PIL import Image  # late: other data sets need no Pillow

    if images.image_content == "blank":
        pixels = np.full((*size, 3), 255, np.uint8)
    else:
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    return _data_url(Image.fromarray(pixels), images.image_format)


def _data_url(image: Any, kind: str) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, kind.upper())
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _mmmu(args: DatasetArgs) -> Iterator[tuple[str, list[str]]]:
    """(question with its options, pictures) in order, again from the first when there are too few."""
    from PIL import Image

    items = list(_mmmu_items(args.dataset_path))
    if not items:
        raise ConfigError(f"--dataset-path {args.dataset_path!r} holds no item")
    for index in range(args.num_prompts):
        item = items[index % len(items)]
        text = f"{item['question']}\n{item['options']}"
        values = [item[f"image_{n}"] for n in range(1, 8) if item.get(f"image_{n}") is not None]
        urls = [_data_url(Image.open(v) if isinstance(v, Path) else v, "png") for v in values]
        yield text, urls


def _mmmu_items(path: str) -> Iterator[dict[str, Any]]:
    folder = Path(path or _MMMU)
    files = sorted(folder.glob("*.jsonl"))
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            item = json.loads(line)
            yield {k: folder / v if k.startswith("image_") else v for k, v in item.items()}
    if files:
        return
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ConfigError(
            f"--dataset-name mmmu: {str(folder)!r} is no folder with *.jsonl files, and reading the published ones needs "
            "`pip install datasets`; benchmark/mmmu/generate.py writes a folder"
        ) from error
    try:
        yield from load_dataset(path or _MMMU, _MMMU_SUBJECT, split="test")
    except Exception as error:
        # a foreign library that raises many kinds: no such data set, no network, wrong files
        raise ConfigError(f"--dataset-name mmmu: {error}") from error
