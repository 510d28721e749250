"""Questions about one picture: each asks something that the picture answers, or returns None.

An asker takes the random generator and the picture and returns (question, answer).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from scene import (
    COLOURS,
    PLACES,
    SHAPES,
    Figure,
    Picture,
    Print,
    Scene,
    draw_number,
    draw_scene,
    draw_sum,
)

Asked = tuple[str, str]
Asker = Callable[[random.Random, Picture], Asked | None]


def _pick(rng: random.Random, templates: str, **names: object) -> str:
    return rng.choice(templates.split("|")).format(**names)


def unique(scene: Scene, attribute: str) -> list[Figure]:
    """The figures whose shape, colour or name no other figure has."""
    counts = Counter(getattr(figure, attribute) for figure in scene.figures)
    return [figure for figure in scene.figures if counts[getattr(figure, attribute)] == 1]


def listed(names: list[str]) -> str:
    """The names as a list in a sentence."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def colour(rng: random.Random, picture: Picture) -> Asked | None:
    if not isinstance(picture, Scene):
        return None
    if rng.random() < 0.15:
        question = _pick(rng, "What colour is the background?|Which colour is the background?")
        return question, f"The background is {picture.background}."
    figures = unique(picture, "shape")
    if not figures:
        return None
    figure = rng.choice(figures)
    if len(picture.figures) == 1 and rng.random() < 0.5:
        question = _pick(
            rng,
            "What colour is it?|What colour is the shape?|Which colour is this?|"
            "What colour is this shape?|Which colour do you see?|Name the colour.|"
            "What is the colour of the shape?",
        )
    else:
        question = _pick(
            rng,
            "What colour is the {s}?|Which colour is the {s}?|What is the colour of the {s}?|"
            "What colour does the {s} have?|Tell me the colour of the {s}.",
            s=figure.shape,
        )
    return question, f"The {figure.shape} is {figure.colour}."


def shape(rng: random.Random, picture: Picture) -> Asked | None:
    if not isinstance(picture, Scene):
        return None
    figures = unique(picture, "colour")
    if len(picture.figures) == 1 and rng.random() < 0.5:
        figure = picture.figures[0]
        question = _pick(
            rng,
            "What shape is it?|What shape is this?|Which shape is this?|Which shape do you see?|"
            "What is this?|Name the shape.|What kind of shape is this?",
        )
    elif figures:
        figure = rng.choice(figures)
        question = _pick(
            rng,
            "What shape is {c}?|Which shape is {c}?|What is the {c} shape?|What is {c}?|"
            "What kind of shape is {c}?",
            c=figure.colour,
        )
    else:
        return None
    return question, f"The {figure.colour} shape is {article(figure.shape)}."


def _count_subject(rng: random.Random, scene: Scene) -> tuple[str, list[Figure]]:
    """(what to count, in the singular; the figures that it names)."""
    seen = rng.choice(scene.figures)
    kind = seen.shape if rng.random() < 0.92 else rng.choice(SHAPES)
    tint = seen.colour if rng.random() < 0.92 else rng.choice(COLOURS)
    by = rng.choice(("all", "all", "shape", "shape", "colour", "both"))
    if by == "all":
        return "shape", list(scene.figures)
    if by == "shape":
        return kind, [f for f in scene.figures if f.shape == kind]
    if by == "colour":
        return f"{tint} shape", [f for f in scene.figures if f.colour == tint]
    return f"{tint} {kind}", [f for f in scene.figures if (f.colour, f.shape) == (tint, kind)]


def _plural(noun: str, count: int) -> str:
    if count == 1:
        return noun
    return noun + ("es" if noun.endswith("cross") else "s")


def count(rng: random.Random, picture: Picture) -> Asked | None:
    """How many there are, counted place by place before the number is said."""
    if not isinstance(picture, Scene):
        return None
    noun, figures = _count_subject(rng, picture)
    question = _pick(
        rng,
        "How many {n} are there?|How many {n} do you see?|Count the {n}.|"
        "How many {n} are in the picture?|How many {n} does the picture show?|How many {n}?|"
        "What is the number of {n}?",
        n=_plural(noun, 2),
    )
    number = len(figures)
    verb = "is" if number == 1 else "are"
    told = f"There {verb} {number} {_plural(noun, number)}."
    if not figures:
        return question, told
    counted = ", ".join(f"{i} {PLACES[f.place][0]}" for i, f in enumerate(figures, 1))
    return question, f"{counted}. {told}"


def position(rng: random.Random, picture: Picture) -> Asked | None:
    """Where a figure is, or what is in a place."""
    if not isinstance(picture, Scene):
        return None
    if rng.random() < 0.4:
        return _what_is_where(rng, picture)
    attribute = rng.choice(("shape", "name", "name"))
    figures = unique(picture, attribute)
    if not figures:
        return None
    figure = rng.choice(figures)
    name = getattr(figure, attribute)
    question = _pick(
        rng,
        "Where is the {n}?|Where do you see the {n}?|In which part of the picture is the {n}?|"
        "What is the position of the {n}?|Where in the picture is the {n}?",
        n=name,
    )
    return question, f"The {name} is {PLACES[figure.place][1]}."


def _what_is_where(rng: random.Random, scene: Scene) -> Asked:
    place = rng.choice(scene.figures).place
    if rng.random() < 0.2:
        place = rng.randrange(len(PLACES))
    found = [article(figure.name) for figure in scene.figures if figure.place == place]
    where = PLACES[place][1]
    question = _pick(
        rng,
        "What is {w}?|What do you see {w}?|What is {w} of the picture?|Which shape is {w}?",
        w=where,
    )
    name = found[0] if found else "nothing"
    return question, f"{name.capitalize()} is {where}."


def relation(rng: random.Random, picture: Picture) -> Asked | None:
    """Whether one figure is left of, right of, above or below another; their places come first."""
    if not isinstance(picture, Scene) or len(picture.figures) < 2:
        return None
    names = {figure.shape: figure for figure in unique(picture, "shape")}
    names |= {figure.name: figure for figure in unique(picture, "name")}
    if len(names) < 2:
        return None
    one, other = rng.sample(sorted(names), 2)
    (row, column), (row2, column2) = (divmod(names[n].place, 3) for n in (one, other))
    words = []
    if column != column2:
        words += [("to the left of", column < column2), ("to the right of", column > column2)]
    if row != row2:
        words += [("above", row < row2), ("below", row > row2)]
    if not words:
        return None
    word, holds = rng.choice(words)
    question = _pick(
        rng,
        "Is the {a} {w} the {b}?|Is it true that the {a} is {w} the {b}?",
        a=one,
        b=other,
        w=word,
    )
    where, where2 = (PLACES[names[n].place][1] for n in (one, other))
    verdict = "yes" if holds else "no"
    return question, f"The {one} is {where}, the {other} {where2}, so {verdict}."


def yes_no(rng: random.Random, picture: Picture) -> Asked | None:
    """Whether there is such a figure; what there is comes first."""
    if not isinstance(picture, Scene) or len(picture.figures) > 5:
        return None
    figure = rng.choice(picture.figures)
    by = rng.choice(("shape", "colour", "both", "both"))
    tint, kind = figure.colour, figure.shape
    if rng.random() < 0.55:
        # A wrong shape or colour that other figures have is the harder question.
        others = [*picture.figures, *picture.figures, *picture.figures, None, None]
        other = rng.choice(others)
        tint = other.colour if other else rng.choice(COLOURS)
        other = rng.choice(others)
        kind = other.shape if other else rng.choice(SHAPES)
    if by == "shape":
        name, holds = kind, any(f.shape == kind for f in picture.figures)
    elif by == "colour":
        name, holds = f"{tint} shape", any(f.colour == tint for f in picture.figures)
    else:
        name = f"{tint} {kind}"
        holds = any(f.name == name for f in picture.figures)
    question = _pick(
        rng,
        "Is there {a}?|Do you see {a}?|Can you see {a}?|Is there {a} in the picture?|"
        "Does the picture show {a}?",
        a=article(name),
    )
    seen = listed([article(figure.name) for figure in picture.figures])
    return question, f"I see {seen}, so {'yes' if holds else 'no'}."


def describe(rng: random.Random, picture: Picture) -> Asked | None:
    question = _pick(
        rng,
        "Describe the picture.|What is in this picture?|What do you see?|Describe this picture.|"
        "What does the picture show?|What is in the picture?|Tell me what you see.|"
        "Describe the image.|What is in this image?|What's in this image?|What do you see here?|"
        "Describe what you see.",
    )
    if isinstance(picture, Print):
        return question, f"I see {shown(picture)}."
    if len(picture.figures) > 5:
        return None
    told = listed([f"{article(f.name)} {PLACES[f.place][1]}" for f in picture.figures])
    return question, f"I see {told}."


def shown(picture: Picture) -> str:
    """A name for what a picture shows: its only figure, or what is printed."""
    if isinstance(picture, Scene):
        return article(picture.figures[0].name)
    for sign in "+-":
        if sign in picture.text:
            return picture.text.replace(sign, f" {sign} ")
    return f"the number {picture.text}"


def number(rng: random.Random, picture: Picture) -> Asked | None:
    if not isinstance(picture, Print) or not picture.text.isdigit():
        return None
    question = _pick(
        rng,
        "What number is this?|Which number do you see?|Read the number.|"
        "What number is printed here?|Which number is in the picture?|What does it say?|"
        "What number is shown?|What is the number?|Read this.|What is written here?",
    )
    return question, f"The number is {picture.text}."


def printed_sum(rng: random.Random, picture: Picture) -> Asked | None:
    if not isinstance(picture, Print) or picture.text.isdigit():
        return None
    question = _pick(
        rng,
        "What is the result?|Solve this.|Compute this.|What is the answer?|How much is this?|"
        "Work this out.|Calculate this.|What do you get?|Solve the sum in the picture.",
    )
    sign = "+" if "+" in picture.text else "-"
    a, b = map(int, picture.text.split(sign))
    return question, f"{a} {sign} {b} = {a + b if sign == '+' else a - b}."


def small_scene(rng: random.Random) -> Scene:
    """One to four figures, no two alike."""
    return draw_scene(rng, rng.choice((1, 1, 2, 2, 3, 3, 4)), different=True)


def _single_often(rng: random.Random) -> Scene:
    return draw_scene(rng, rng.choice((1, 1, 1, 2, 2, 3)), different=True)


def crowd(rng: random.Random) -> Scene:
    """One to nine figures of few kinds, to be counted."""
    return draw_scene(rng, rng.randint(1, 9), rng.randint(1, 3), rng.randint(1, 3))


def _few(rng: random.Random) -> Scene:
    return draw_scene(rng, rng.choice((2, 2, 3, 3, 4)), different=True)


def _any_picture(rng: random.Random) -> Picture:
    return draw_number(rng) if rng.random() < 0.12 else small_scene(rng)


# skill -> (draws a picture for it, asks about it)
PICTURE_SKILLS: dict[str, tuple[Callable[[random.Random], Picture], Asker]] = {
    "picture_colour": (_single_often, colour),
    "picture_shape": (_single_often, shape),
    "picture_count": (crowd, count),
    "picture_position": (small_scene, position),
    "picture_relation": (_few, relation),
    "picture_yes_no": (small_scene, yes_no),
    "picture_describe": (_any_picture, describe),
    "picture_number": (draw_number, number),
    "picture_sum": (draw_sum, printed_sum),
}
ASKERS: tuple[Asker, ...] = tuple(ask for _, ask in PICTURE_SKILLS.values())
