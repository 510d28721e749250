"""The algorithms of speculative decoding, by the names that users give them."""

from __future__ import annotations

from enum import Enum, auto


class SpeculativeAlgorithm(Enum):
    """NONE: every step samples one token of each request."""

    NONE = auto()
    EAGLE = auto()
    EAGLE3 = auto()
    STANDALONE = auto()
    NGRAM = auto()

    @classmethod
    def from_string(cls, name: str | None) -> SpeculativeAlgorithm:
        """The algorithm of `--speculative-algorithm`, in any case; None is NONE. Raises ValueError for another name."""
        if name is None:
            return cls.NONE
        known = {**cls.__members__, "NEXTN": cls.EAGLE}
        if name.upper() not in known:
            raise ValueError(
                f"speculative algorithm {name!r} is unknown; known: {', '.join(known)}"
            )
        return known[name.upper()]

    def is_none(self) -> bool:
        return self is SpeculativeAlgorithm.NONE

    def is_eagle(self) -> bool:
        """True for both kinds of EAGLE."""
        return self in (SpeculativeAlgorithm.EAGLE, SpeculativeAlgorithm.EAGLE3)

    def is_eagle3(self) -> bool:
        return self is SpeculativeAlgorithm.EAGLE3

    def is_standalone(self) -> bool:
        return self is SpeculativeAlgorithm.STANDALONE

    def is_ngram(self) -> bool:
        return self is SpeculativeAlgorithm.NGRAM
