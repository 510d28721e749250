"""A grammar that begins after the model's reasoning."""

from __future__ import annotations

import numpy as np

from sglang.srt.constrained.base import GrammarMatcher


class AfterReasoning:
    """A `GrammarMatcher` that allows everything until `end_id` (the token that closes the reasoning) was accepted."""

    def __init__(self, inner: GrammarMatcher, end_id: int) -> None:
        self._inner = inner
        self._end_id = end_id
        self._num_bound = 0  # tokens that `inner` has accepted
        self._is_over = False

    def accept_token(self, token_id: int) -> bool:
        if self._is_over:
            accepted = self._inner.accept_token(token_id)
            self._num_bound += accepted
            return accepted
        self._is_over = token_id == self._end_id
        return True

    def fill_mask(self, mask: np.ndarray) -> None:
        if self._is_over:
            self._inner.fill_mask(mask)
        else:
            mask[:] = -1

    def is_terminated(self) -> bool:
        return self._is_over and self._inner.is_terminated()

    def rollback(self, num_tokens: int) -> None:
        from_inner = min(num_tokens, self._num_bound)
        if from_inner:
            self._inner.rollback(from_inner)
            self._num_bound -= from_inner
        if num_tokens > from_inner:
            self._is_over = False

    def jump_forward(self) -> str:
        return self._inner.jump_forward() if self._is_over else ""
