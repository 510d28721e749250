"""Multiple choice: the options stand in the question, the answer is one letter."""

from __future__ import annotations

import random
from collections.abc import Sequence

from arithmetic import short_sum
from item import Item, ask
from scene import COLOURS, PLACES, SHAPES, Picture, Print, Scene, draw_number
from skills import Asked, crowd, small_scene, unique
from words import ANIMALS, CITIES, ITEMS, MONTHS, WEEKDAYS

_LETTERS = "ABCD"
_ORDERS = (
    "",
    "",
    "Answer with the letter.",
    "Answer with the letter of the right option.",
    "Answer with the option's letter from the given choices directly.",
    "Answer with the option's letter from the given choices directly.",
    "Which option is right?",
    "Answer:",
)
_STYLES = ("{}. {}", "{}) {}", "({}) {}", "{}: {}")


def draw_picture(rng: random.Random) -> Picture:
    """A picture to ask a multiple-choice question about."""
    draw = rng.choice((draw_number, crowd, small_scene, small_scene, small_scene))
    return draw(rng)


def picture_choice(rng: random.Random, picture: Picture) -> Asked | None:
    """A multiple-choice question about a picture, or None where the kind drawn does not fit."""
    drawn = _about_print(rng, picture) if isinstance(picture, Print) else _about_scene(rng, picture)
    if drawn is None:
        return None
    question, right, others = drawn
    return lay_out(rng, question, right, others)


def lay_out(rng: random.Random, question: str, right: str, others: Sequence[str]) -> Asked:
    """(the question with lettered options, the letter of `right`)."""
    options = [right, *rng.sample(list(others), min(len(others), rng.choice((1, 2, 3, 3, 3, 3))))]
    rng.shuffle(options)
    style, between = rng.choice(_STYLES), rng.choice(("\n", "\n", "\n", " "))
    listed = between.join(
        style.format(letter, option) for letter, option in zip(_LETTERS, options, strict=False)
    )
    text = question + between + listed
    if order := rng.choice(_ORDERS):
        text += rng.choice(("\n", "\n", "\n\n")) + order
    return text, _LETTERS[options.index(right)]


def _about_print(rng: random.Random, picture: Print) -> tuple[str, str, list[str]] | None:
    if not picture.text.isdigit():
        return None
    question = rng.choice(("What number is this?", "Which number is in the picture?"))
    others: set[str] = set()
    while len(others) < 3:
        digits = list(picture.text)
        place = rng.randrange(len(digits))
        digits[place] = rng.choice("123456789")
        if rng.random() < 0.3:
            rng.shuffle(digits)
        others.add("".join(digits))
        others -= {picture.text} | {text for text in others if text[0] == "0"}
    return question, picture.text, sorted(others)


def _about_scene(rng: random.Random, scene: Scene) -> tuple[str, str, list[str]] | None:
    kind = rng.choice(("colour", "shape", "count", "place"))
    if kind == "count":
        right = len(scene.figures)
        others = [str(n) for n in range(1, 10) if n != right]
        return "How many shapes are there?", str(right), others
    by = {"colour": "shape", "shape": "colour", "place": "name"}[kind]
    figures = unique(scene, by)
    if not figures:
        return None
    figure = rng.choice(figures)
    if kind == "colour":
        right, pool = figure.colour, COLOURS
        question = f"What colour is the {figure.shape}?"
    elif kind == "shape":
        right, pool = figure.shape, SHAPES
        question = f"What shape is {figure.colour}?"
    else:
        right, pool = PLACES[figure.place][0], [name for name, _ in PLACES]
        question = f"Where is the {figure.name}?"
    return question, right, [option for option in pool if option != right]


_GROUPS = {
    "a colour": COLOURS,
    "an animal": ANIMALS,
    "a city": CITIES,
    "a month": MONTHS,
    "a day of the week": WEEKDAYS,
    "a thing": ITEMS,
}


def text_choice(rng: random.Random) -> Item:
    """A multiple-choice question without a picture: a sum, the largest number, a kind of word."""
    kind = rng.choice(("sum", "sum", "largest", "group", "day"))
    if kind == "sum":
        question, result, key, _ = short_sum(rng)
        others = {abs(result + rng.choice((-20, -10, -2, -1, 1, 2, 3, 10, 20))) for _ in range(6)}
        right, pool = str(result), [str(n) for n in sorted(others - {result})]
    elif kind == "largest":
        numbers = rng.sample(range(100), 4)
        word = rng.choice(("largest", "smallest"))
        chosen = max(numbers) if word == "largest" else min(numbers)
        question, right = f"Which number is the {word}?", str(chosen)
        pool = [str(n) for n in numbers if n != chosen]
        key = f"{word} {sorted(numbers)}"
    elif kind == "group":
        name, other = rng.sample(sorted(_GROUPS), 2)
        right, pool = rng.choice(_GROUPS[name]), rng.sample(_GROUPS[other], 3)
        question, key = f"Which of these is {name}?", f"group {name} {right} {other} {sorted(pool)}"
    else:
        place, step = rng.randrange(7), rng.choice((1, -1))
        word = "after" if step == 1 else "before"
        question = f"Which day comes {word} {WEEKDAYS[place]}?"
        right = WEEKDAYS[(place + step) % 7]
        pool = rng.sample([day for day in WEEKDAYS if day != right], 3)
        key = f"day {word} {place} {sorted(pool)}"
    text, letter = lay_out(rng, question, right, pool)
    return ask("choice", text, letter, key)
