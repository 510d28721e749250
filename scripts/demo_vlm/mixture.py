"""All that the model is trained on: the text demo's conversations and conversations on pictures.

A message about pictures has a list of parts as its content, {"type": "image"} where a picture
stands and {"type": "text", "text": ...}; the pictures are listed beside the messages, in order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import data as text_data
from choice import draw_picture, picture_choice, text_choice
from item import is_held_out, reword
from scene import Picture, draw_number, draw_scene
from skills import ASKERS, PICTURE_SKILLS, Asked, Asker, shown

Message = dict[str, Any]
_ORDINALS = ("first", "second", "third")
_NO_PICTURE = "I see no picture. Please send me one."


@dataclass(frozen=True)
class Question:
    """A conversation up to a question, its pictures, and the one answer that counts as right.

    keys: what is asked about, free of wording and drawing: held out if all of it is held out,
    for training if none is.
    """

    skill: str
    messages: tuple[Message, ...]
    answer: str
    pictures: tuple[Picture, ...]
    keys: tuple[str, ...]

    def belongs(self, held_out: bool) -> bool:
        return bool(self.keys) and all(is_held_out(key) == held_out for key in self.keys)


@dataclass(frozen=True)
class Conversation:
    """Messages that end with the assistant's, and their pictures in order."""

    messages: tuple[Message, ...]
    pictures: tuple[Picture, ...]


def sample(skill: str, rng: random.Random, held_out: bool) -> Question:
    """One question of a skill, from the held-out ones or from those for training."""
    if skill not in SKILLS:
        raise ValueError(f"unknown skill {skill!r}; choose one of {sorted(SKILLS)}")
    while True:
        question = SKILLS[skill][0](rng)
        if question is not None and question.belongs(held_out):
            return question


def sample_held_out(skill: str, count: int, seed: int) -> list[Question]:
    """`count` held-out questions of a skill; the same seed gives the same questions."""
    if skill in text_data.SKILLS:
        items = text_data.sample_held_out(skill, count, seed)
        return [
            Question(skill, item.messages, item.answer, (), (item.key or "",)) for item in items
        ]
    rng = random.Random(f"held out {skill} {seed}")
    return [sample(skill, rng, held_out=True) for _ in range(count)]


@dataclass(frozen=True)
class Shares:
    """How often what is trained.

    text: share of the text demo's conversations. factors: by how much a skill's weight among the
    others is multiplied, 1 where it is not named.
    """

    text: float = 0.35
    factors: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.factors) - set(NEW_SKILLS))
        if unknown:
            raise ValueError(f"no weight for {unknown}; choose from {sorted(NEW_SKILLS)}")

    def weights(self) -> list[float]:
        return [SKILLS[name][1] * self.factors.get(name, 1.0) for name in SKILLS]


def draw_conversation(rng: random.Random, shares: Shares | None = None) -> Conversation:
    """A training conversation."""
    shares = shares or Shares()
    if rng.random() < shares.text:
        return Conversation(tuple(text_data.draw_conversation(rng)), ())
    skill = rng.choices(list(SKILLS), weights=shares.weights())[0]
    question = sample(skill, rng, held_out=False)
    messages = [*question.messages, _reply(question.answer)]
    if rng.random() < 0.2:
        system = rng.choice(text_data.SYSTEM_PROMPTS)
        messages.insert(0, {"role": "system", "content": system})
    pictures = list(question.pictures)
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 3))):
        _add_turn(rng, messages, pictures, shares.factors.get("picture_choice", 1.0))
    return Conversation(tuple(messages), tuple(pictures))


def _reply(answer: str) -> Message:
    return {"role": "assistant", "content": answer}


def _add_turn(
    rng: random.Random, messages: list[Message], pictures: list[Picture], choices: float
) -> None:
    """One more question: on the only picture so far, on a new one, or on no picture.

    choices: the weight of multiple choice, where each other kind of question has 1.
    """
    kind = rng.random()
    if kind < 0.6 and len(pictures) == 1:
        weights = [1.0] * len(ASKERS) + [choices]
        ask = rng.choices((*ASKERS, picture_choice), weights)[0]
        asked = ask(rng, pictures[0])
        if asked is not None:
            messages += [{"role": "user", "content": asked[0]}, _reply(asked[1])]
    elif kind < 0.75 and len(pictures) == 1:
        # The question is on the new picture: whatever "the picture" may mean, it is the last one.
        question = sample(rng.choice(list(PICTURE_SKILLS)), rng, held_out=False)
        messages += [*question.messages, _reply(question.answer)]
        pictures += question.pictures
    else:
        skill = rng.choice(list(text_data.SKILLS))
        item = text_data.sample(skill, rng, held_out=False)
        if len(item.messages) == 1:
            messages += [*item.messages, _reply(item.answer)]


def _with_pictures(rng: random.Random, text: str, count: int) -> Message:
    """A user message with its pictures before the text, or sometimes after it."""
    images: list[Message] = [{"type": "image"}] * count
    words: list[Message] = [{"type": "text", "text": text}]
    return {"role": "user", "content": words + images if rng.random() < 0.2 else images + words}


def _one_picture(
    skill: str, draw: Callable[[random.Random], Picture], ask: Asker
) -> Callable[[random.Random], Question | None]:
    def generate(rng: random.Random) -> Question | None:
        picture = draw(rng)
        asked = ask(rng, picture)
        if asked is None:
            return None
        text = asked[0] if skill == "picture_choice" else reword(rng, asked[0])
        message = _with_pictures(rng, text, 1)
        return Question(skill, (message,), asked[1], (picture,), (picture.key,))

    return generate


def _several(rng: random.Random) -> Question | None:
    """Two or three pictures; what one of them shows, or which shows a thing."""
    draws = (lambda r: draw_scene(r, 1), lambda r: draw_scene(r, 1), draw_number)
    pictures = tuple(rng.choice(draws)(rng) for _ in range(rng.choice((2, 2, 3))))
    asked = _ask_several(rng, pictures)
    if asked is None:
        return None
    message = _with_pictures(rng, reword(rng, asked[0]), len(pictures))
    return Question(
        "several_pictures", (message,), asked[1], pictures, tuple(p.key for p in pictures)
    )


def _ask_several(rng: random.Random, pictures: tuple[Picture, ...]) -> Asked | None:
    names = [shown(picture) for picture in pictures]
    if len(set(names)) < len(names):
        return None
    chosen = rng.randrange(len(pictures))
    ordinal, name = _ORDINALS[chosen], names[chosen]
    kind = rng.choice(("what", "what", "which", "all"))
    if kind == "what":
        words = rng.choice(("What is in the {} picture?", "What does the {} picture show?"))
        return words.format(ordinal), f"The {ordinal} picture shows {name}."
    if kind == "which":
        words = rng.choice(("Which picture shows {}?", "In which picture do you see {}?"))
        return words.format(name), f"The {ordinal} picture shows {name}."
    words = rng.choice(("What do the pictures show?", "Describe the pictures.", "What do you see?"))
    told = [f"the {o} picture shows {n}" for o, n in zip(_ORDINALS, names, strict=False)]
    answer = ", ".join(told[:-1]) + " and " + told[-1] + "."
    return words, answer[0].upper() + answer[1:]


def _no_picture(rng: random.Random) -> Question | None:
    """A question about a picture that was not sent."""
    draw, ask = PICTURE_SKILLS[rng.choice(list(PICTURE_SKILLS))]
    asked = ask(rng, draw(rng))
    vague = ("What is the answer?", "What do you get?", "What is the result?", "Read this.")
    if asked is None or asked[0] in vague:
        return None
    text = reword(rng, asked[0])
    return Question(
        "no_picture", ({"role": "user", "content": text},), _NO_PICTURE, (), (f"none {text}",)
    )


def _choice(rng: random.Random) -> Question:
    item = text_choice(rng)
    return Question("choice", item.messages, item.answer, (), (item.key or "",))


def _text(skill: str) -> Callable[[random.Random], Question]:
    def generate(rng: random.Random) -> Question:
        item = text_data.SKILLS[skill][0](rng)
        return Question(skill, item.messages, item.answer, (), (item.key,) if item.key else ())

    return generate


_PICTURE_WEIGHTS = {
    "picture_colour": 1.0,
    "picture_shape": 1.0,
    "picture_count": 2.5,
    "picture_position": 2.0,
    "picture_relation": 1.5,
    "picture_yes_no": 1.5,
    "picture_describe": 3.0,
    "picture_number": 2.5,
    "picture_sum": 2.0,
}
# skill -> (generator, weight in the share of training that is not the text demo's)
SKILLS: dict[str, tuple[Callable[[random.Random], Question | None], float]] = {
    **{
        skill: (_one_picture(skill, draw, ask), _PICTURE_WEIGHTS[skill])
        for skill, (draw, ask) in PICTURE_SKILLS.items()
    },
    "picture_choice": (_one_picture("picture_choice", draw_picture, picture_choice), 3.0),
    "several_pictures": (_several, 1.5),
    "choice": (_choice, 2.0),
    "no_picture": (_no_picture, 0.2),
    **{skill: (_text(skill), 0.0) for skill in text_data.SKILLS},
}
NEW_SKILLS = tuple(name for name in SKILLS if name not in text_data.SKILLS)
