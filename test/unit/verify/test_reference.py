"""The greedy continuation of the reference: a guess saves passes, and decides ties only."""

from __future__ import annotations

from sglang.verify.proof import Proof

PROMPT = [5, 6, 7, 8, 9]


def test_a_guess_changes_nothing(proof: Proof) -> None:
    right = proof.reference.greedy(PROMPT, 6)
    for guess in (right.output_ids, right.output_ids[:3], (0, 0, 0, 0, 0, 0)):
        found = proof.reference.greedy(PROMPT, 6, guess)
        assert found.output_ids == right.output_ids
        assert len(found.logits) == len(PROMPT) + 5


def test_a_guess_decides_between_tokens_that_are_as_likely(proof: Proof) -> None:
    """The second most likely token is taken where the difference is at most the tie, and the continuation goes on behind it."""
    right = proof.reference.greedy(PROMPT, 4)
    row = right.logits[len(PROMPT)]  # chooses the second token
    first, second = row.topk(2).values.tolist()
    guess = (right.output_ids[0], int(row.topk(2).indices[1]))
    gap = (first - second) / max(1.0, right.scale)
    kept = proof.reference.greedy(PROMPT, 4, guess, tie=1.5 * gap)
    assert kept.output_ids[:2] == guess
    behind = proof.reference.greedy([*PROMPT, *guess], 2)
    assert kept.output_ids[2:] == behind.output_ids
    dropped = proof.reference.greedy(PROMPT, 4, guess, tie=0.1 * gap)
    assert dropped.output_ids == right.output_ids
