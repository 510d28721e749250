"""Grade-school word problems on a running server: GSM8K's test file, or sums made up here.

python benchmark/gsm8k/bench_sglang.py --data-path test.jsonl --num-questions 200
python benchmark/gsm8k/bench_sglang.py --data-path generated --reference MODEL
"""

from __future__ import annotations

import argparse
import json
import random
import re
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

_STOP = ("Question", "Assistant:", "<|separator|>")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
Problem = dict[str, str]  # question, answer


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-shots", type=int, default=5)
    parser.add_argument("--data-path", default="test.jsonl", help='JSON lines, or "generated"')
    parser.add_argument("--num-questions", type=int, default=200)
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--reference", help="compare every answer with this model in transformers")
    args = add_common_sglang_args_and_parse(parser, argv)
    try:
        problems = load_problems(args.data_path, args.num_shots + args.num_questions)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    shots, asked = problems[: args.num_shots], problems[args.num_shots :]
    head = "".join(_written(shot, with_answer=True) for shot in shots)
    prompts = [head + _written(problem, with_answer=False) for problem in asked]
    texts, latency, num_tokens = generate_all(args, prompts, args.max_new_tokens, _STOP)
    found = [last_number(text) for text in texts]
    wanted = [last_number(problem["answer"]) for problem in asked]
    accuracy = sum(f == w for f, w in zip(found, wanted, strict=True)) / len(asked)
    invalid = found.count(None) / len(asked)
    print(f"Accuracy: {accuracy:.3f}\nInvalid: {invalid:.3f}\nLatency: {latency:.3f} s")
    print(f"Output throughput: {num_tokens / latency:.3f} token/s")
    other = {"num_questions": args.num_questions, "parallel": args.parallel}
    append_result(args, "gsm8k", accuracy, latency, len(asked), other)
    if args.reference:
        theirs = answer_with_transformers(args.reference, prompts, args.max_new_tokens, _STOP)
        print_comparison(texts, theirs)
    return 0


def load_problems(path: str, count: int) -> list[Problem]:
    """At most `count` problems, the shots first. Raises ConfigError when there is no file or too little in it."""
    if path == "generated":
        return make_problems(count)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(
            f"--data-path {path!r}: {error.strerror}; give GSM8K's test.jsonl, or --data-path generated"
        ) from error
    return [json.loads(line) for line in lines if line.strip()][:count]


def make_problems(count: int, seed: int = 0) -> list[Problem]:
    """Sums of two numbers in a sentence, with the working as GSM8K writes it."""
    rng = random.Random(seed)
    problems = []
    for _ in range(count):
        a, b = rng.randint(1, 50), rng.randint(1, 49)
        thing = rng.choice(("apples", "books", "coins", "pencils", "stamps"))
        question = f"A box holds {a} {thing}. {b} more are put in. How many {thing} are in it?"
        problems.append({"question": question, "answer": f"{a} + {b} = {a + b}\n#### {a + b}"})
    return problems


def last_number(text: str) -> float | None:
    """The last number of a text; None without one."""
    found = _NUMBER.findall(text.replace(",", ""))
    return float(found[-1]) if found else None


def _written(problem: Problem, with_answer: bool) -> str:
    answer = f" {problem['answer']}\n\n" if with_answer else ""
    return f"Question: {problem['question']}\nAnswer:{answer}"


if __name__ == "__main__":
    sys.exit(main())
