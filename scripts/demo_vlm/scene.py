"""What a picture shows, free of how it is drawn: coloured shapes in nine places, or a number."""

from __future__ import annotations

import random
from dataclasses import dataclass

COLOURS = "red green blue yellow orange purple pink black white".split()
SHAPES = "circle square triangle star cross diamond".split()
BACKGROUNDS = "white black grey".split()
# The nine places, row by row: (name, with its preposition).
PLACES = (
    ("top left", "in the top left"),
    ("top", "at the top"),
    ("top right", "in the top right"),
    ("left", "on the left"),
    ("middle", "in the middle"),
    ("right", "on the right"),
    ("bottom left", "in the bottom left"),
    ("bottom", "at the bottom"),
    ("bottom right", "in the bottom right"),
)
MIDDLE = 4


@dataclass(frozen=True, order=True)
class Figure:
    """A shape of one colour in one of the nine places (0 to 8, row by row)."""

    place: int
    colour: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Figures in different places on a background; `figures` are sorted by place."""

    figures: tuple[Figure, ...]
    background: str

    @property
    def key(self) -> str:
        """The content that the split between training and evaluation goes by."""
        return "scene " + ", ".join(f"{f.place} {f.name}" for f in self.figures)


@dataclass(frozen=True)
class Print:
    """A number such as "4821", or a sum such as "17+25", in one colour."""

    text: str
    colour: str
    background: str

    @property
    def key(self) -> str:
        """A sum has the key that the same sum has as text."""
        for sign, word in (("+", "add"), ("-", "subtract")):
            if sign in self.text:
                a, b = map(int, self.text.split(sign))
                return f"{word} {min(a, b)} {max(a, b)}" if sign == "+" else f"{word} {a} {b}"
        return f"number {self.text}"


Picture = Scene | Print


def draw_scene(
    rng: random.Random, count: int, colours: int = 9, shapes: int = 6, different: bool = False
) -> Scene:
    """A scene of `count` figures made of at most so many colours and shapes.

    different: no two figures are alike in both.
    """
    background = rng.choice(BACKGROUNDS)
    palette = rng.sample([c for c in COLOURS if c != background], min(colours, len(COLOURS) - 1))
    kinds = rng.sample(SHAPES, shapes)
    if different:
        pairs = rng.sample([(c, s) for c in palette for s in kinds], count)
    else:
        pairs = [(rng.choice(palette), rng.choice(kinds)) for _ in range(count)]
    places = sorted(rng.sample(range(len(PLACES)), count))
    figures = [Figure(place, *pair) for place, pair in zip(places, pairs, strict=True)]
    return Scene(tuple(figures), background)


def draw_number(rng: random.Random) -> Print:
    """A number of one to four digits."""
    digits = rng.choice((1, 2, 2, 3, 3, 4, 4))
    number = rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)
    return _print(rng, str(number))


def draw_sum(rng: random.Random) -> Print:
    """A sum of numbers from 0 to 99, or a difference that is not negative."""
    a, b = (rng.randint(0, rng.choice((12, 99, 99))) for _ in range(2))
    if rng.random() < 0.5:
        return _print(rng, f"{a}+{b}")
    return _print(rng, f"{max(a, b)}-{min(a, b)}")


def _print(rng: random.Random, text: str) -> Print:
    background = rng.choice(BACKGROUNDS)
    return Print(text, rng.choice([c for c in COLOURS if c != background]), background)
