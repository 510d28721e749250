"""One question with its answer, and the rule that keeps held-out questions out of training."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

HELD_OUT_PERCENT = 15


@dataclass(frozen=True)
class Item:
    """A question and the one answer that counts as right.

    messages: the conversation up to and including the question (a user message).
    key: what the question asks, free of its wording; the split is by its hash. None marks a fact
    that has to be seen to be known (there is no other way to learn that 7 x 8 = 56): such an item
    is for training only.
    """

    skill: str
    messages: tuple[Message, ...]
    answer: str
    key: str | None

    @property
    def is_held_out(self) -> bool:
        return self.key is not None and is_held_out(self.key)


def is_held_out(key: str) -> bool:
    """Whether questions with this content are kept for the evaluation."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def ask(skill: str, question: str, answer: str, key: str | None, system: str = "") -> Item:
    """An item of one user message, after a system message if one is given."""
    head = ({"role": "system", "content": system},) if system else ()
    return Item(skill, (*head, {"role": "user", "content": question}), answer, key)


def reword(rng: random.Random, text: str, lower: bool = True) -> str:
    """A small variation of a question: politeness, case, the punctuation at its end.

    lower=False keeps the case of a text with names in it.
    """
    if rng.random() < 0.08:
        text = rng.choice(("Please ", "Hi! ", "Hello, ", "OK, ", "Question: ", "Now: ")) + text
    if rng.random() < 0.08:
        text = text.rstrip(".?") + rng.choice((", please", " please", ", please?", ", please."))
    elif rng.random() < 0.12:
        text = text.rstrip(".?")
    if lower and rng.random() < 0.12:
        text = text.lower()
    return text.strip()
