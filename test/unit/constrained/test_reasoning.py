"""The grammar starts after the token that ends the reasoning, and rollback crosses that border both ways."""

from __future__ import annotations

import numpy as np

from sglang.srt.constrained.base import mask_words
from sglang.srt.constrained.reasoning import AfterReasoning


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
