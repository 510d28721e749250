"""The demo model's data: every skill, the split, and the conversations it is trained on.

`sample(skill, rng, held_out=True)` draws questions the model has never seen; `draw_conversation`
draws training text. Everything follows from the random generator that is passed in.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import arithmetic
import calendar_time
import reading
import smalltalk
from item import Item, Message

# skill -> (generator, weight in the training mix)
SKILLS: dict[str, tuple[Callable[[random.Random], Item], float]] = {
    "addition": (arithmetic.addition, 2.0),
    "subtraction": (arithmetic.subtraction, 3.0),
    "times_table": (arithmetic.times_table, 0.5),
    "word_problem": (arithmetic.word_problem, 1.2),
    "comparison": (arithmetic.comparison, 1.8),
    "counting": (arithmetic.counting, 1.5),
    "units": (arithmetic.units, 1.0),
    "weekdays": (calendar_time.weekdays, 0.5),
    "months": (calendar_time.months, 0.7),
    "table_lookup": (reading.table_lookup, 4.5),
    "lists": (reading.lists, 1.8),
    "copying": (reading.copying, 1.2),
    "json_answer": (reading.json_answer, 3.0),
    "json_record": (reading.json_record, 2.0),
    "memory": (reading.memory, 1.0),
    "small_talk": (smalltalk.small_talk, 0.6),
    "beyond": (smalltalk.beyond, 0.2),
}
_LONG = 250  # characters after which a conversation takes no further question
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "You are a friendly assistant.",
    "You are a tiny demo model.",
    "Answer the question.",
    "Be brief and correct.",
)


def sample(skill: str, rng: random.Random, held_out: bool) -> Item:
    """One item of a skill, from the held-out questions or from the training questions."""
    if skill not in SKILLS:
        raise ValueError(f"unknown skill {skill!r}; choose one of {sorted(SKILLS)}")
    generate = SKILLS[skill][0]
    while True:
        item = generate(rng)
        if item.is_held_out == held_out:
            return item


def sample_held_out(skill: str, count: int, seed: int = 0) -> list[Item]:
    """`count` held-out items of a skill; the same seed gives the same items."""
    rng = random.Random(f"held out {skill} {seed}")
    return [sample(skill, rng, held_out=True) for _ in range(count)]


def draw_conversation(rng: random.Random) -> list[Message]:
    """A training conversation of one to four questions, each from the training split."""
    first = _draw(rng)
    if first.skill == "memory":
        return _memory_conversation(rng)
    messages = [*first.messages, {"role": "assistant", "content": first.answer}]
    has_system = messages[0]["role"] == "system"
    if has_system:
        return messages
    if rng.random() < 0.3:
        messages.insert(0, {"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    for _ in range(rng.choice((0, 0, 0, 0, 1, 1, 2, 3))):
        if sum(len(message["content"]) for message in messages) > _LONG:
            break
        messages += _turn(rng)
    return messages


def _draw(rng: random.Random) -> Item:
    names = list(SKILLS)
    skill = rng.choices(names, weights=[SKILLS[name][1] for name in names])[0]
    return sample(skill, rng, held_out=False)


def _turn(rng: random.Random) -> tuple[Message, ...]:
    """A question and its answer to stand inside a longer conversation."""
    while True:
        item = _draw(rng)
        if item.messages[0]["role"] == "user":
            return (*item.messages, {"role": "assistant", "content": item.answer})


def _memory_conversation(rng: random.Random) -> list[Message]:
    between = _turn(rng) if rng.random() < 0.5 else ()
    while between and len(between) != 2:
        between = _turn(rng)
    while True:
        item = reading.memory(rng, between)
        if not item.is_held_out:
            return [*item.messages, {"role": "assistant", "content": item.answer}]
