"""From items to samples, from answers to scores: what the runners share."""

from __future__ import annotations

import argparse
import dataclasses
import pprint
import random
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_utils import (
    DOMAIN_CAT2SUB_CAT,
    GENERATED_CAT2SUB_CAT,
    build_prompt,
    image_files,
    load_items,
    options_of,
    read_prompt_format,
    save_json,
    split_prompt,
)

_FOLDER = Path(__file__).parent
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?")


@dataclasses.dataclass
class EvalArgs:
    """The flags of every runner."""

    dataset_path: str = "MMMU/MMMU"
    split: str = "validation"
    image_pixels_limit: int = 4_300_000
    prompt_format_file: str = str(_FOLDER / "prompt_format.yaml")
    result_filename: str = ""
    extra_request_body: str = ""
    seed: int = 42
    max_new_tokens: int = 30
    temperature: float = 0.0
    response_answer_regex: str = "(.*)"
    lora_path: str = ""
    concurrency: int = 1
    profile: bool = False
    profile_number: int = 5

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> None:
        for field in dataclasses.fields(EvalArgs):
            flag = f"--{field.name.replace('_', '-')}"
            if isinstance(field.default, bool):
                parser.add_argument(flag, action="store_true")
            else:
                parser.add_argument(flag, type=type(field.default), default=field.default)

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> EvalArgs:
        return cls(**{field.name: getattr(args, field.name) for field in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True)
class Sample:
    """One question. `parts` are ("text", words) and ("image", PNG file); `answer` a letter, or the accepted texts."""

    id: str
    subject: str
    parts: list[tuple[str, str]]
    options: list[str]
    answer: str | list[str]


def prepare_samples(eval_args: EvalArgs) -> list[Sample]:
    """All samples whose pictures are within the limit; how many are not is printed. Raises ConfigError."""
    prompt_format = read_prompt_format(eval_args.prompt_format_file)
    samples, skipped = [], 0
    for subject, item in load_items(eval_args.dataset_path, eval_args.split):
        images = image_files(item)
        if any(_pixels(path) > eval_args.image_pixels_limit for path in images.values()):
            skipped += 1
            continue
        parts = split_prompt(build_prompt(item, prompt_format), images)
        samples.append(Sample(item["id"], subject, parts, options_of(item), item["answer"]))
    print(f"{len(samples)} samples; {skipped} skipped for pictures above the limit of pixels")
    return samples


def process_result(response: str, sample: Sample, eval_args: EvalArgs) -> dict[str, Any]:
    """What is stored of an answer: as it came, what was read in it, and whether that is right."""
    words = response.rpartition("</think>")[2].strip()
    match = re.search(eval_args.response_answer_regex, words, re.DOTALL)
    words = match.group(1).strip() if match and match.groups() else words
    parsed: Any
    if sample.options:
        parsed = parse_multi_choice_response(words, sample.options, eval_args.seed, sample.id)
        is_right = parsed == sample.answer
    else:
        parsed = parse_open_response(words)
        is_right = is_open_answer_right(parsed, sample.answer)
    return {
        "id": sample.id,
        "subject": sample.subject,
        "answer": sample.answer,
        "response": response,
        "parsed": parsed,
        "is_right": is_right,
    }


def parse_multi_choice_response(
    response: str, options: Sequence[str], seed: int = 0, sample_id: str = ""
) -> str:
    """The letter that an answer means: the last one in brackets, else the last one that stands alone, else the option whose text comes
    last, else one by lot (the same for the same seed and sample)."""
    letters = string.ascii_uppercase[: len(options)]
    for pattern in (rf"\(([{letters}])\)", rf"(?<![A-Za-z0-9'])([{letters}])(?![A-Za-z0-9'])"):
        found = re.findall(pattern, response)
        if found:
            return found[-1]
    places = [response.lower().rfind(option.lower()) for option in options]
    if max(places) >= 0:
        # Of two at one place the longer is meant: "top" and "top left".
        best = max(range(len(options)), key=lambda i: (places[i], len(options[i])))
        return letters[best]
    return random.Random(f"{seed} {sample_id}").choice(letters)


def parse_open_response(response: str) -> list[str | float]:
    """Numbers and texts that an answer may mean: its last sentence, and all numbers."""
    sentences = [part for part in re.split(r"\.\s|\n", response.strip()) if part.strip()]
    last = sentences[-1] if sentences else ""
    for word in (" is ", " are ", "=", ":"):
        last = last.rpartition(word)[2]
    found: list[str | float] = [normalise(last), normalise(response)]
    return found + [float(number.replace(",", "")) for number in _NUMBER.findall(response)]


def is_open_answer_right(parsed: Sequence[str | float], answer: str | Sequence[str]) -> bool:
    """A number equals one of the accepted ones to two digits, or an accepted text is in what was said."""
    for accepted in [answer] if isinstance(answer, str) else answer:
        wanted = normalise(accepted)
        if isinstance(wanted, float):
            if any(isinstance(p, float) and round(p, 2) == round(wanted, 2) for p in parsed):
                return True
        elif any(isinstance(p, str) and wanted in p for p in parsed):
            return True
    return False


def normalise(text: str) -> str | float:
    """A number where the text is one, else lower case without a full stop."""
    text = text.strip().rstrip(".").strip("\"'$ ")
    return float(text.replace(",", "")) if _NUMBER.fullmatch(text) else text.lower()


def eval_result(results: Sequence[Mapping[str, Any]], path: str) -> dict[str, Any]:
    """Scores by subject and domain, printed and written to `path`."""
    scores: dict[str, Any] = {}
    domains = {**DOMAIN_CAT2SUB_CAT, **GENERATED_CAT2SUB_CAT}
    for domain, subjects in domains.items():
        mine = [row for row in results if row["subject"] in subjects]
        if mine:
            scores[f"Overall-{domain}"] = _score(mine)
        for subject in subjects:
            rows = [row for row in mine if row["subject"] == subject]
            if rows:
                scores[subject] = _score(rows)
    scores["Overall"] = _score(results)
    pprint.pprint(scores, sort_dicts=False)
    save_json(path, scores)
    print(f"Overall accuracy: {scores['Overall']['acc']}")
    return scores


def _score(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    right = sum(bool(row["is_right"]) for row in rows)
    return {"num": len(rows), "acc": round(right / max(len(rows), 1), 3)}


def _pixels(path: str) -> int:
    from PIL import Image

    with Image.open(path) as image:
        return image.width * image.height
