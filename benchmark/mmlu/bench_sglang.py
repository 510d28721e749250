"""MMLU on a running server: its folder of CSV files, or questions made up here.

python benchmark/mmlu/bench_sglang.py --data_dir data --nsub 60
python benchmark/mmlu/bench_sglang.py --data_dir generated --reference MODEL
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from sglang.srt.utils.errors import ConfigError
from sglang.test.bench_args import (
    add_common_sglang_args_and_parse,
    answer_with_transformers,
    append_result,
    generate_all,
    print_comparison,
)

_LETTERS = "ABCD"
Row = list[str]  # question, four choices, the right letter


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ntrain", "-k", type=int, default=5, help="examples before a question")
    parser.add_argument("--data_dir", "-d", default="data", help='folder, or "generated"')
    parser.add_argument("--save_dir", "-s", default="results", help="answers by subject")
    parser.add_argument("--nsub", type=int, default=60, help="most subjects")
    parser.add_argument("--reference", help="compare every answer with this model in transformers")
    args = add_common_sglang_args_and_parse(parser, argv)
    try:
        subjects = load_subjects(args.data_dir, args.nsub)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    prompts, wanted, owners = [], [], []
    for subject, (examples, rows) in subjects.items():
        head = f"The following are multiple choice questions about {subject.replace('_', ' ')}.\n\n"
        head += "".join(_written(row, True) for row in examples[: args.ntrain])
        prompts += [head + _written(row, False) for row in rows]
        wanted += [row[5] for row in rows]
        owners += [subject] * len(rows)
    texts, latency, num_tokens = generate_all(args, prompts, 1)
    is_right = [text.strip()[:1] == letter for text, letter in zip(texts, wanted, strict=True)]
    _report(owners, is_right, latency)
    accuracy = sum(is_right) / len(is_right)
    other = {"nsub": args.nsub, "parallel": args.parallel, "num_tokens": num_tokens}
    append_result(args, "mmlu", accuracy, latency, len(prompts), other)
    _save(Path(args.save_dir), owners, texts, wanted)
    if args.reference:
        print_comparison(texts, answer_with_transformers(args.reference, prompts, 1))
    return 0


def load_subjects(folder: str, most: int) -> dict[str, tuple[list[Row], list[Row]]]:
    """(examples, questions) by subject. Raises ConfigError when the folder has none."""
    if folder == "generated":
        return {"arithmetic": (make_rows(5, seed=1), make_rows(40, seed=2))}
    names = sorted(Path(folder, "test").glob("*_test.csv"))[:most]
    if not names:
        raise ConfigError(
            f"--data_dir {folder!r} has no test/*_test.csv; unpack MMLU's data there, or use --data_dir generated"
        )
    found = {}
    for path in names:
        subject = path.name.removesuffix("_test.csv")
        found[subject] = (_read(Path(folder, "dev", f"{subject}_dev.csv")), _read(path))
    return found


def make_rows(count: int, seed: int) -> list[Row]:
    """Sums with four results to choose from."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        a, b = rng.randint(1, 50), rng.randint(1, 49)
        choices = [a + b, *rng.sample([n for n in range(1, 100) if n != a + b], 3)]
        rng.shuffle(choices)
        letter = _LETTERS[choices.index(a + b)]
        rows.append([f"What is {a} + {b}?", *map(str, choices), letter])
    return rows


def _read(path: Path) -> list[Row]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.reader(file))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def _written(row: Row, with_answer: bool) -> str:
    lines = [row[0], *(f"{letter}. {row[i + 1]}" for i, letter in enumerate(_LETTERS)), "Answer:"]
    return "\n".join(lines) + (f" {row[5]}\n\n" if with_answer else "")


def _report(owners: Sequence[str], is_right: Sequence[bool], latency: float) -> None:
    for subject in dict.fromkeys(owners):
        mine = [right for owner, right in zip(owners, is_right, strict=True) if owner == subject]
        print(f"subject: {subject}, #q: {len(mine)}, acc: {sum(mine) / len(mine):.3f}")
    print(f"Total latency: {latency:.3f} s")
    print(f"Average accuracy: {sum(is_right) / len(is_right):.3f}")


def _save(folder: Path, owners: Sequence[str], texts: Sequence[str], wanted: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"subject": owner, "answer": letter, "response": text}
        for owner, letter, text in zip(owners, wanted, texts, strict=True)
    ]
    (folder / "answers.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
