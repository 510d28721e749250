"""The subjects of MMMU, items as prompts, and where items come from: the hub, a folder of its files, or a folder that `generate` wrote."""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sglang.srt.utils.errors import ConfigError

DOMAIN_CAT2SUB_CAT: dict[str, list[str]] = {
    "Art and Design": ["Art", "Art_Theory", "Design", "Music"],
    "Business": ["Accounting", "Economics", "Finance", "Manage", "Marketing"],
    "Science": ["Biology", "Chemistry", "Geography", "Math", "Physics"],
    "Health and Medicine": [
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ],
    "Humanities and Social Science": ["History", "Literature", "Psychology", "Sociology"],
    "Tech and Engineering": [
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ],
}
# Of the generated set.
GENERATED_CAT2SUB_CAT = {"Drawings": ["Colours", "Shapes", "Counts", "Places", "Numbers"]}
SUBJECTS = [name for names in DOMAIN_CAT2SUB_CAT.values() for name in names]
MAX_IMAGES = 7
_IMAGE = re.compile(r"<image (\d+)>")
# Pictures are kept as PNG, so that all runners see the same files.
_CACHE = Path.home() / ".cache" / "sglang-mmmu"


def load_items(dataset_path: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(subject, item) in order. Raises ConfigError when the data cannot be had."""
    folder = Path(dataset_path)
    written = sorted(folder.glob("*.jsonl"))
    if written:
        for path in written:
            for line in path.read_text(encoding="utf-8").splitlines():
                yield path.stem, _with_files(json.loads(line), folder)
        return
    for subject in SUBJECTS:
        for item in _load_subject(dataset_path, subject, split):
            yield subject, item


def _load_subject(dataset_path: str, subject: str, split: str) -> Any:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ConfigError(
            f"--dataset-path {dataset_path!r} is no folder with *.jsonl files, and reading the published files needs "
            "`pip install datasets`; `python benchmark/mmmu/generate.py FOLDER` writes a set that needs nothing"
        ) from error
    try:
        return load_dataset(dataset_path, subject, split=split)
    except Exception as error:
        # a foreign library that raises many kinds: no such data set, no network, wrong files
        raise ConfigError(f"--dataset-path {dataset_path!r}, {subject}: {error}") from error


def _with_files(item: dict[str, Any], folder: Path) -> dict[str, Any]:
    names = {f"image_{n}" for n in range(1, MAX_IMAGES + 1)} & item.keys()
    return {**item, **{name: folder / item[name] for name in names if item[name]}}


def image_files(item: Mapping[str, Any]) -> dict[int, str]:
    """The item's pictures by number, as PNG files."""
    found = {}
    for number in range(1, MAX_IMAGES + 1):
        value = item.get(f"image_{number}")
        if value is None:
            continue
        path = value if isinstance(value, Path) else _CACHE / f"{item['id']}_{number}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _open(value).convert("RGB").save(path, "PNG")
        found[number] = str(path)
    return found


def _open(value: Any) -> Any:
    """A PIL image of what a data set holds: one, or the bytes of a file."""
    from PIL import Image

    return Image.open(io.BytesIO(value["bytes"])) if isinstance(value, dict) else value


def read_prompt_format(path: str) -> dict[str, str]:
    """Raises ConfigError unless the file has `option`, `multiple_choice` and `open`."""
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--prompt-format-file {path!r}: {error.strerror}") from error
    missing = {"option", "multiple_choice", "open"} - set(found or {})
    if missing:
        raise ConfigError(f"--prompt-format-file {path!r} lacks {', '.join(sorted(missing))}")
    return found


def options_of(item: Mapping[str, Any]) -> list[str]:
    """The choices; empty for an open question. MMMU writes them as a Python list in a string."""
    options = item["options"]
    return list(ast.literal_eval(options) if isinstance(options, str) else options)


def build_prompt(item: Mapping[str, Any], prompt_format: Mapping[str, str]) -> str:
    """The question with its options; `<image N>` where a picture stands."""
    options = options_of(item)
    lines = [
        prompt_format["option"].format(letter=chr(ord("A") + i), text=option)
        for i, option in enumerate(options)
    ]
    kind = "multiple_choice" if options else "open"
    return prompt_format[kind].format(question=item["question"], options="\n".join(lines))


def split_prompt(prompt: str, images: Mapping[int, str]) -> list[tuple[str, str]]:
    """("text", words) and ("image", file) in turn. Pictures that the prompt does not name come first."""
    pieces = _IMAGE.split(prompt)
    named = {int(number) for number in pieces[1::2]}
    parts = [("image", path) for number, path in images.items() if number not in named]
    for i, piece in enumerate(pieces):
        if i % 2 == 0:
            parts += [("text", piece)] if piece.strip() else []
        elif int(piece) in images:
            parts.append(("image", images[int(piece)]))
    return parts


def save_json(path: str | Path, value: Any) -> None:
    Path(path).write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
