"""Write a set in MMMU's format that needs no download: multiple-choice questions on drawn pictures, held out of the demo model's training.

python benchmark/mmmu/generate.py FOLDER --num-items 100
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

_SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path += [str(_SCRIPTS / "demo_vlm"), str(_SCRIPTS / "demo_model")]

from draw import render  # noqa: E402
from item import is_held_out  # noqa: E402
from scene import COLOURS, PLACES, SHAPES, Picture, Print, draw_number, draw_scene  # noqa: E402
from skills import unique  # noqa: E402

_NUM_OPTIONS = 4
# (question, right answer, wrong answers)
Choice = tuple[str, str, list[str]]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-items", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    count = write_set(args.folder, args.num_items, args.seed)
    print(f"{count} items in {args.folder}")
    return 0


def write_set(folder: Path, num_items: int, seed: int = 0) -> int:
    """One file of JSON lines per subject, and the pictures; returns the number of items."""
    subjects = ["Colours", "Shapes", "Counts", "Places", "Numbers"]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {subject: [] for subject in subjects}
    for index in range(num_items):
        subject = subjects[index % len(subjects)]
        name = f"validation_{subject}_{index // len(subjects) + 1}"
        rng = random.Random(f"{seed} {name}")
        picture, choice = _draw(subject, rng)
        file = f"images/{name}.png"
        render(picture, rng).save(folder / file)
        lines[subject].append(json.dumps(_item(name, file, choice, rng)))
    for subject, rows in lines.items():
        if rows:
            (folder / f"{subject}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return sum(map(len, lines.values()))


def _item(name: str, file: str, choice: Choice, rng: random.Random) -> dict[str, object]:
    question, right, others = choice
    options = [right, *rng.sample(others, min(len(others), _NUM_OPTIONS - 1))]
    rng.shuffle(options)
    return {
        "id": name,
        "question": f"<image 1>{question}",
        "options": repr(options),
        "answer": "ABCD"[options.index(right)],
        "question_type": "multiple-choice",
        "image_1": file,
    }


def _draw(subject: str, rng: random.Random) -> tuple[Picture, Choice]:
    """A held-out picture that the subject can ask about."""
    while True:
        picture: Picture = draw_number(rng) if subject == "Numbers" else _scene(subject, rng)
        choice = _ask(subject, picture, rng)
        if choice is not None and is_held_out(picture.key):
            return picture, choice


def _scene(subject: str, rng: random.Random) -> Picture:
    if subject == "Counts":
        return draw_scene(rng, rng.randint(1, 9), rng.randint(1, 3), rng.randint(1, 3))
    return draw_scene(rng, rng.randint(1, 3), different=True)


def _ask(subject: str, picture: Picture, rng: random.Random) -> Choice | None:
    if isinstance(picture, Print):
        wrong = {str(int(picture.text) + step) for step in (-11, -10, -1, 1, 10, 11)}
        others = sorted(number for number in wrong if not number.startswith("-"))
        return "What number is this?", picture.text, others
    if subject == "Counts":
        right = len(picture.figures)
        return (
            "How many shapes are there?",
            str(right),
            [str(n) for n in range(1, 10) if n != right],
        )
    figures = unique(picture, {"Colours": "shape", "Shapes": "colour", "Places": "name"}[subject])
    if not figures:
        return None
    figure = rng.choice(figures)
    question, right, pool = {
        "Colours": (f"What colour is the {figure.shape}?", figure.colour, COLOURS),
        "Shapes": (f"What shape is {figure.colour}?", figure.shape, SHAPES),
        "Places": (
            f"Where is the {figure.name}?",
            PLACES[figure.place][0],
            [name for name, _ in PLACES],
        ),
    }[subject]
    return question, right, [option for option in pool if option != right]


if __name__ == "__main__":
    sys.exit(main())
