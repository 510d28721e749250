"""Multiple choice: the options stand in the question; the answer is a letter, or ends with one.

What has to be worked out first, a sum or what a picture shows, is worked out in the answer even
where the letter alone is asked for: a small model cannot do it unsaid.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from arithmetic import short_sum
from item import Item, ask, is_held_out
from scene import COLOURS, PLACES, SHAPES, Picture, Print, Scene, draw_number, draw_scene
from skills import Asked, small_scene, unique
from words import ANIMALS, CITIES, ITEMS, MONTHS, WEEKDAYS

_LETTERS = "ABCD"
_LETTER_ALONE = (
    "Answer with the letter.",
    "Answer with the letter of the right option.",
    "Answer with the option's letter from the given choices directly.",
    "Answer with the option's letter from the given choices directly.",
    "Answer:",
)
_EXPLAINED = ("", "", "Which option is right?", "Choose one option.")
_STYLES = ("{}. {}", "{}) {}", "({}) {}", "{}: {}")


@dataclass(frozen=True)
class Quiz:
    """A question with its right option, wrong ones, and the sentence that says why."""

    question: str
    right: str
    others: Sequence[str]
    fact: str  # without its full stop


def draw_picture(rng: random.Random) -> Picture:
    """A picture to ask a multiple-choice question about."""
    kind = rng.random()
    if kind < 0.2:
        return draw_number(rng)
    if kind < 0.4:
        return draw_scene(rng, rng.randint(1, 6), rng.randint(1, 3), rng.randint(1, 3))
    return small_scene(rng)


def picture_choice(rng: random.Random, picture: Picture) -> Asked | None:
    """A multiple-choice question about a picture, or None where the kind drawn does not fit."""
    quiz = _about_print(rng, picture) if isinstance(picture, Print) else _about(rng, picture)
    return lay_out(rng, quiz, rng.random() < 0.6, worked=True) if quiz else None


def lay_out(rng: random.Random, quiz: Quiz, alone: bool, worked: bool) -> Asked:
    """(the question with lettered options, the answer).

    alone: the letter is all that is asked for; worked: the answer says why even so.
    """
    count = min(len(quiz.others), rng.choice((1, 2, 3, 3, 3, 3)))
    options = [quiz.right, *rng.sample(list(quiz.others), count)]
    rng.shuffle(options)
    style, between = rng.choice(_STYLES), rng.choice(("\n", "\n", "\n", " "))
    lines = [
        style.format(letter, option) for letter, option in zip(_LETTERS, options, strict=False)
    ]
    text = quiz.question + between + between.join(lines)
    if order := rng.choice(_LETTER_ALONE if alone else _EXPLAINED):
        text += rng.choice(("\n", "\n", "\n\n")) + order
    letter = _LETTERS[options.index(quiz.right)]
    return text, letter if alone and not worked else f"{quiz.fact}, so {letter}."


def _about_print(rng: random.Random, picture: Print) -> Quiz | None:
    right = picture.text
    if not right.isdigit():
        return None
    question = rng.choice(("What number is this?", "Which number is in the picture?"))
    return Quiz(question, right, _other_numbers(rng, right), f"The number is {right}")


def _other_numbers(rng: random.Random, right: str) -> list[str]:
    """Three numbers of as many digits, none of them held out.

    A held-out number is never the right option in training. Were it a wrong one there, the model
    would learn that it is always wrong.
    """
    low = 10 ** (len(right) - 1) if len(right) > 1 else 0
    others: set[str] = set()
    while len(others) < 3:
        other = str(rng.randrange(low, 10 ** len(right)))
        if other != right and not is_held_out(Print(other, "", "").key):
            others.add(other)
    return sorted(others)


def _about(rng: random.Random, scene: Scene) -> Quiz | None:
    kind = rng.choice(("colour", "shape", "count", "place"))
    if kind == "count":
        right = len(scene.figures)
        if right > 6:
            return None
        others = [str(n) for n in range(1, 7) if n != right]
        verb, noun = ("is", "shape") if right == 1 else ("are", "shapes")
        return Quiz(
            "How many shapes are there?", str(right), others, f"There {verb} {right} {noun}"
        )
    figures = unique(scene, {"colour": "shape", "shape": "colour", "place": "name"}[kind])
    if not figures:
        return None
    figure = rng.choice(figures)
    if kind == "colour":
        right, pool = figure.colour, COLOURS
        question = f"What colour is the {figure.shape}?"
        fact = f"The {figure.shape} is {figure.colour}"
    elif kind == "shape":
        right, pool = figure.shape, SHAPES
        question = f"What shape is {figure.colour}?"
        fact = f"The {figure.colour} shape is a {figure.shape}"
    else:
        right, where = PLACES[figure.place]
        pool = [name for name, _ in PLACES]
        question = f"Where is the {figure.name}?"
        fact = f"The {figure.name} is {where}"
    return Quiz(question, right, [option for option in pool if option != right], fact)


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
    kind, alone = rng.choice((_sum, _sum, _largest, _group, _day)), rng.random() < 0.6
    quiz, key = kind(rng, alone)
    text, answer = lay_out(rng, quiz, alone, worked=kind is _sum)
    return ask("choice", text, answer, key)


def _sum(rng: random.Random, alone: bool) -> tuple[Quiz, str]:
    question, result, key, written = short_sum(rng)
    others = {abs(result + rng.choice((-20, -10, -2, -1, 1, 2, 3, 10, 20))) for _ in range(6)}
    wrong = [str(n) for n in sorted(others - {result})]
    return Quiz(question, str(result), wrong, f"{written} = {result}"), key


def _largest(rng: random.Random, alone: bool) -> tuple[Quiz, str]:
    numbers = rng.sample(range(10 if alone else 100), 4)
    word = rng.choice(("largest", "smallest"))
    chosen = max(numbers) if word == "largest" else min(numbers)
    wrong = [str(n) for n in numbers if n != chosen]
    fact = f"The {word} number is {chosen}"
    quiz = Quiz(f"Which number is the {word}?", str(chosen), wrong, fact)
    return quiz, f"{word} {sorted(numbers)}"


def _group(rng: random.Random, alone: bool) -> tuple[Quiz, str]:
    name, other = rng.sample(sorted(_GROUPS), 2)
    # Where two groups share a word ("orange"), the wrong options must not be right as well.
    right = rng.choice(_GROUPS[name])
    wrong = rng.sample([word for word in _GROUPS[other] if word not in _GROUPS[name]], 3)
    fact = f"{right[0].upper()}{right[1:]} is {name}"
    quiz = Quiz(f"Which of these is {name}?", right, wrong, fact)
    return quiz, f"group {name} {right} {other} {sorted(wrong)}"


def _day(rng: random.Random, alone: bool) -> tuple[Quiz, str]:
    place, step = rng.randrange(7), rng.choice((1, -1))
    word = "after" if step == 1 else "before"
    right = WEEKDAYS[(place + step) % 7]
    wrong = rng.sample([day for day in WEEKDAYS if day != right], 3)
    fact = f"The day {word} {WEEKDAYS[place]} is {right}"
    quiz = Quiz(f"Which day comes {word} {WEEKDAYS[place]}?", right, wrong, fact)
    return quiz, f"day {word} {place} {sorted(wrong)}"
