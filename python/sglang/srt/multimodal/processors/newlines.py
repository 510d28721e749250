"""Joins newline tokens that came to stand side by side, as a tokenizer would have written them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def join_newlines(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """Ids in which every run of tokens that are nothing but newlines is the tokenizer's own writing of so many newlines.

    A text that was put together from ids differs from one that was tokenized as a whole only there, for tokenizers that split at
    everything else.
    """
    known: dict[int, int] = {}
    joined: list[int] = []
    waiting: list[int] = []

    def num_newlines(token: int) -> int:
        if token not in known:
            text = tokenizer.decode([token])
            known[token] = len(text) if text and not text.strip("\n") else 0
        return known[token]

    def flush() -> None:
        if len(waiting) > 1:
            text = "\n" * sum(num_newlines(token) for token in waiting)
            joined.extend(tokenizer.encode(text, add_special_tokens=False))
        else:
            joined.extend(waiting)
        waiting.clear()

    for token in ids:
        if num_newlines(token):
            waiting.append(token)
        else:
            flush()
            joined.append(token)
    flush()
    return joined
