"""Grammars without a library. What may follow depends on every token before it, so that a mask which is a token behind is noticed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

LAST = 3  # ends a text


class ScriptedMatcher:
    """Follows `text`, pairs of words: `length 7` is the number of tokens before the last one; `fill 2`, `accept 2` and `nothing 2` break
    the mask after 2 tokens, the way past the third one, or allow nothing there."""

    def __init__(self, text: str, vocab_size: int) -> None:
        words = text.split()
        self._numbers = {
            key: int(number) for key, number in zip(words[::2], words[1::2], strict=True)
        }
        self._vocab_size = vocab_size
        self._state = self._numbers["length"]
        self.num_accepted = 0

    def _is_time_for(self, fault: str) -> bool:
        return self._numbers.get(fault) == self.num_accepted

    def allowed(self) -> list[int]:
        if self._is_time_for("nothing"):
            return []
        if self.num_accepted >= self._numbers["length"]:
            return [LAST]
        others = (token for token in range(self._vocab_size) if token != LAST)
        return [token for token in others if (token + self._state) % 5 == 0]

    def accept_token(self, token_id: int) -> bool:
        if self._is_time_for("accept"):
            raise RuntimeError("lost the way")
        if token_id not in self.allowed():
            return False
        self._state = (self._state * 31 + token_id) % 1009
        self.num_accepted += 1
        return True

    def fill_mask(self, mask: np.ndarray) -> None:
        if self._is_time_for("fill"):
            raise KeyError("no such state")
        mask[:] = 0
        for token in self.allowed():
            mask[token // 32] |= np.int32(np.uint32(1 << token % 32).view(np.int32))

    def is_terminated(self) -> bool:
        return self.num_accepted > self._numbers["length"]


class Grammars:
    """Stands in for `GrammarManager`; every grammar is ready at once."""

    def __init__(self, make: Callable[[str], object]) -> None:
        self._make = make

    def submit(self, kind: str, text: str) -> Ready:
        return Ready(lambda: self._make(text))

    def poll(self) -> list[Ready]:
        return []


class Ready:
    done = True

    def __init__(self, make: Callable[[], object]) -> None:
        self.matcher = make


def allowed_by(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()
