"""The grammar starts after the token that ends the reasoning, and rollback crosses that border both ways."""

from __future__ import annotations

import numpy as np

from sglang.srt.constrained.base import mask_words
from sglang.srt.constrained.reasoning import AfterReasoning


class Inner:
    """A matcher that takes everything and says what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def accept_token(self, token_id: int) -> bool:
        self.calls.append(("accept", token_id))
        return True

    def rollback(self, num_tokens: int) -> None:
        self.calls.append(("rollback", num_tokens))


def test_the_grammar_is_rolled_back_by_what_it_has_accepted():
    inner = Inner()
    matcher = AfterReasoning(inner, end_id=9)
    mask = np.zeros(2, dtype=np.int32)
    matcher.fill_mask(mask)
    assert mask.tolist() == [-1, -1], "every token is allowed"
    for token in (1, 9, 2, 3, 4):
        assert matcher.accept_token(token)
    matcher.rollback(2)
    matcher.rollback(2)  # one of them is the end of the reasoning
    for token in (5, 9, 6):
        assert matcher.accept_token(token)
    matcher.rollback(1)
    assert inner.calls == [
        *[("accept", token) for token in (2, 3, 4)],
        ("rollback", 2),
        ("rollback", 1),
        ("accept", 6),
        ("rollback", 1),
    ]


def test_everything_is_allowed_until_the_reasoning_ends(backend, tokenizer, vocab_size):
    a, z, end = tokenizer.convert_tokens_to_ids(["a", "z", "!"])
    matcher = AfterReasoning(backend.compile("regex", "a{1,9}").new_matcher(), end)
    mask = np.zeros(mask_words(vocab_size), dtype=np.int32)

    def is_allowed(token: int) -> bool:
        matcher.fill_mask(mask)
        return bool(mask[token // 32] >> (token % 32) & 1)

    assert (
        is_allowed(z) and matcher.accept_token(z) and matcher.accept_token(tokenizer.eos_token_id)
    )
    assert not matcher.is_terminated() and matcher.jump_forward() == ""
    assert matcher.accept_token(end)
    assert not is_allowed(z) and is_allowed(a) and not matcher.accept_token(z)
    assert matcher.accept_token(a) and matcher.accept_token(a)
    matcher.rollback(1)
    assert not is_allowed(z)
    matcher.rollback(2)  # the last "a" and the end of the reasoning
    assert is_allowed(z) and matcher.accept_token(end)
    assert matcher.accept_token(a) and matcher.accept_token(tokenizer.eos_token_id)
    assert matcher.is_terminated()
