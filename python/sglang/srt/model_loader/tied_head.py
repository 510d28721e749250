"""A stored copy of a head that the config ties to the embedding: left out, once it is known to be a copy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from sglang.srt.layers.parameter import unfilled_shards
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from sglang.srt.models.common.causal_lm import CausalLM
from sglang.srt.models.common.weights import NamedTensor, WeightProblem

_NAME = "lm_head.weight"
_ROWS_AT_ONCE = 8192


class TiedHead:
    """Keeps the stored head, as mapped from its file, until the embedding is in place."""

    def __init__(self, model: CausalLM) -> None:
        head = model.lm_head
        is_tied = model.is_tied and isinstance(head, VocabParallelEmbedding)
        self._embedding: VocabParallelEmbedding | None = head if is_tied else None
        self._stored: torch.Tensor | None = None

    def stream(self, weights: Iterable[NamedTensor]) -> Iterator[NamedTensor]:
        """The same pairs, noted."""
        for name, tensor in weights:
            if name == _NAME and self._embedding is not None:
                self._stored = tensor
            yield name, tensor

    def problems(self) -> list[WeightProblem]:
        """One when the stored head is another matrix than the embedding, which would be used in its place."""
        if self._embedding is None or self._stored is None:
            return []
        is_filled = not unfilled_shards(self._embedding.get_parameter("weight"))
        if not is_filled or _is_copy(self._stored, self._embedding):
            return []
        text = (
            f"tensor {_NAME} {list(self._stored.shape)} is another matrix than the embedding, but config.json ties the two "
            "(tie_word_embeddings) and it would be left out; to use it, pass "
            """--json-model-override-args '{"tie_word_embeddings": false}', else remove it"""
        )
        return [WeightProblem(text, _NAME)]


def _is_copy(stored: torch.Tensor, embedding: VocabParallelEmbedding) -> bool:
    """Whether the rows of this rank are those of the embedding, in its dtype."""
    weight, rows = embedding.get_parameter("weight").data, embedding.shard_indices
    start, end = rows.org_vocab_start_index, rows.org_vocab_end_index
    if stored.shape != (embedding.org_vocab_size, weight.shape[1]):
        return False
    for first in range(start, end, _ROWS_AT_ONCE):
        last = min(first + _ROWS_AT_ONCE, end)
        part = stored[first:last].to(weight.device, weight.dtype)
        if not torch.equal(part, weight[first - start : last - start]):
            return False
    return True
