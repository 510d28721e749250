"""Prompts with pictures: their number and size, repeatability, the bodies of both routes, and errors."""

from __future__ import annotations

import base64
import copy
import io
import json
from typing import Any

import pytest

from sglang.bench.backends import BACKENDS, RequestOptions
from sglang.bench.datasets import BenchRequest, DatasetArgs
from sglang.bench.image_datasets import ImageArgs, sample_image_requests
from sglang.srt.utils.errors import ConfigError

Image = pytest.importorskip("PIL.Image")
TEMPLATE = (
    "{% for p in messages[0].content %}{% if p.type == 'image' %}w9 {% else %}{{ p.text }}{% endif %}"
    "{% endfor %}"
)


@pytest.fixture
def seeing(tokenizer: Any) -> Any:
    """The tokenizer with a template for pictures."""
    found = copy.deepcopy(tokenizer)
    found.chat_template = TEMPLATE
    return found


def sample(tokenizer: Any, **values: Any) -> list[BenchRequest]:
    images = ImageArgs(**{"image_resolution": "24x32", **values})
    args = DatasetArgs(
        dataset_name="image",
        num_prompts=5,
        random_input_len=10,
        random_output_len=4,
        random_range_ratio=1.0,
    )
    return sample_image_requests(args, images, tokenizer)


def opened(url: str) -> Any:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_pictures_have_the_asked_size_and_format(seeing: Any, kind: str) -> None:
    requests = sample(seeing, image_count=2, image_format=kind)
    assert [len(request.images) for request in requests] == [2] * 5
    picture = opened(requests[0].images[0])
    assert (picture.size, picture.format) == ((32, 24), kind.upper())
    assert len({url for request in requests for url in request.images}) == 10
    assert requests == sample(seeing, image_count=2, image_format=kind)


def test_number_and_content(seeing: Any) -> None:
    counts = {len(r.images) for r in sample(seeing, image_count=4, random_image_count=True)}
    assert len(counts) > 1 and counts <= {1, 2, 3, 4}
    (extrema,) = {opened(r.images[0]).getextrema() for r in sample(seeing, image_content="blank")}
    assert all(low >= 254 for low, _ in extrema)


@pytest.mark.parametrize(("name", "size"), [("4k", (2160, 3840)), ("360p", (360, 640))])
def test_names_of_resolutions(name: str, size: tuple[int, int]) -> None:
    assert ImageArgs(image_resolution=name).size == size


@pytest.mark.parametrize("name", ["5k", "0x10", "10x", "axb", "20000x10"])
def test_other_resolutions_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--image-resolution"):
        _ = ImageArgs(image_resolution=name).size


def test_bodies(seeing: Any) -> None:
    request = sample(seeing, image_count=2)[0]
    options = RequestOptions()
    native = BACKENDS["sglang"](options).body(request)
    assert native["image_data"] == list(request.images)
    assert native["text"].startswith("w9 w9 ") and request.prompt_len == 10
    (message,) = BACKENDS["sglang-oai-chat"](options).body(request)["messages"]
    kinds = [part["type"] for part in message["content"]]
    assert kinds == ["image_url", "image_url", "text"]
    with pytest.raises(ConfigError, match="takes no pictures"):
        BACKENDS["sglang-oai"](options).body(request)


def test_questions_of_a_folder(seeing: Any, tmp_path: Any) -> None:
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.png")
    item = {"question": "w1 w2", "options": "['w3']", "image_1": "a.png"}
    (tmp_path / "Math.jsonl").write_text(json.dumps(item) + "\n")
    args = DatasetArgs(dataset_name="mmmu", dataset_path=str(tmp_path), num_prompts=3)
    requests = sample_image_requests(args, ImageArgs(), seeing)
    assert len(requests) == 3 and opened(requests[2].images[0]).size == (8, 6)
    assert "w1 w2" in str(requests[0].prompt)
