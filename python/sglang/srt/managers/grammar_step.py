"""The grammars of one step: the masks that its sampling needs, and the tokens that came of it.

Matchers belong to libraries that read what clients wrote; one that fails ends its own request and no other.
"""

from __future__ import annotations

import logging

import numpy as np

from sglang.srt.constrained.base import GrammarMatcher, mask_words
from sglang.srt.managers.planner import PlannedStep
from sglang.srt.managers.request import Req
from sglang.srt.managers.step_plan import RowWork
from sglang.srt.sampling.row_masks import RowMasks

logger = logging.getLogger(__name__)


class GrammarStep:
    """Those requests of `planned` that a grammar binds and that get a token in it."""

    def __init__(self, planned: PlannedStep) -> None:
        self._bound: list[tuple[Req, GrammarMatcher, RowWork]] = [
            (req, req.grammar, work)
            for req, work in zip(planned.reqs, planned.plan.works, strict=True)
            if req.grammar is not None and work.sample
        ]

    def lacks_tokens(self) -> bool:
        """Does a mask depend on tokens of a step in flight?"""
        return any(len(req.output_ids) < work.num_outputs for req, _, work in self._bound)

    def fill_masks(self, vocab_size: int) -> tuple[RowMasks | None, list[tuple[Req, str]]]:
        """Masks of the requests that have not ended, None when there are none; and whose matcher failed, with the reason.

        All tokens before those of this step must have been accepted.
        """
        bound = [entry for entry in self._bound if entry[0].finish_reason is None]
        if not bound:
            return None, []
        words = np.zeros((len(bound), mask_words(vocab_size)), np.int32)
        failures = []
        for (req, grammar, _), mask in zip(bound, words, strict=True):
            try:
                grammar.fill_mask(mask)
            except Exception as error:  # request boundary: a library may raise anything
                failures.append((req, _failure(req, error)))
        return RowMasks([work.row for *_, work in bound], words), failures


def accept_token(req: Req, token_id: int) -> str | None:
    """Take the matcher of `req`, if it has one, past its newest token; returns why that was not possible."""
    if req.grammar is None:
        return None
    try:
        is_accepted = req.grammar.accept_token(token_id)
    except Exception as error:  # request boundary: a library may raise anything
        return _failure(req, error)
    return None if is_accepted else f"token {token_id} does not fit the grammar"


def _failure(req: Req, error: Exception) -> str:
    logger.exception("The grammar of request %s failed", req.rid)
    return f"the grammar failed after {len(req.output_ids)} tokens ({type(error).__name__})"
