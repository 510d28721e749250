"""Questions about the days of the week and the months of the year, answered by counting along."""

from __future__ import annotations

import random

from item import Item, ask, reword
from words import MONTHS, WEEKDAYS


def weekdays(rng: random.Random) -> Item:
    """The weekday up to 10 days before or after another."""
    return _steps(rng, "weekdays", WEEKDAYS, "day", 10)


def months(rng: random.Random) -> Item:
    """The month up to 12 months before or after another."""
    return _steps(rng, "months", MONTHS, "month", 12)


def _steps(rng: random.Random, skill: str, cycle: list[str], unit: str, top: int) -> Item:
    place, n = rng.randrange(len(cycle)), rng.randint(1, top)
    start, step = cycle[place], rng.choice((1, 1, -1))
    direction = "after" if step == 1 else "before"
    if n == 1 and rng.random() < 0.7:
        return _neighbour(rng, skill, start, direction, unit, cycle[(place + step) % len(cycle)])
    path = [cycle[(place + step * i) % len(cycle)] for i in range(1, n + 1)]
    many = unit if n == 1 else unit + "s"
    templates = [
        "What {u} is {n} {m} {d} {x}?",
        "Which {u} is {n} {m} {d} {x}?",
        "What is {n} {m} {d} {x}?",
        "{n} {m} {d} {x}?",
        "Which {u} comes {n} {m} {d} {x}?",
        "It is {x}. What {u} is it in {n} {m}?"
        if step == 1
        else "It is {x}. What {u} was it {n} {m} ago?",
    ]
    question = rng.choice(templates).format(u=unit, n=n, m=many, d=direction, x=start)
    counted = ", ".join(f"{i} {name}" for i, name in enumerate(path, 1))
    answer = f"{counted}. {n} {many} {direction} {start} is {path[-1]}."
    return ask(skill, reword(rng, question), answer, f"{skill} {start} {direction} {n}")


def _neighbour(
    rng: random.Random, skill: str, start: str, direction: str, unit: str, end: str
) -> Item:
    """The next or the last one: facts, for training only."""
    near = ("tomorrow", "yesterday") if unit == "day" else ("next month", "last month")
    word, verb = (near[0], "is") if direction == "after" else (near[1], "was")
    now = "Today is" if unit == "day" else "It is"
    question = rng.choice(
        (f"What {unit} comes {direction} {start}?", f"Which {unit} is {direction} {start}?")
        + (f"{now} {start}. What {unit} {verb} {word}?",)
    )
    return ask(skill, reword(rng, question), f"The {unit} {direction} {start} is {end}.", None)
