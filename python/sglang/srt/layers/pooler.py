"""From hidden states to one vector or score per request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class PoolingType(IntEnum):
    """Which token stands for the request."""

    LAST = 0
    CLS = 1


@dataclass
class EmbeddingPoolerOutput:
    """[B, width], or a list of B tensors where requests asked for different widths."""

    embeddings: torch.Tensor | list[torch.Tensor]


class Pooler(nn.Module):
    """Takes the first or last row of each request; optionally cuts it to a width and normalises it
    to length one."""

    def __init__(self, pooling_type: PoolingType, normalize: bool) -> None:
        super().__init__()
        self.pooling_type = PoolingType(pooling_type)
        self.normalize = normalize

    def forward(
        self, hidden_states: torch.Tensor, forward_batch: ForwardBatch
    ) -> EmbeddingPoolerOutput:
        """hidden_states [T, D]; `forward_batch.dimensions` are the widths asked for, if any."""
        lens = forward_batch.extend_seq_lens
        assert lens is not None, "pooling needs extend_seq_lens"
        ends = torch.cumsum(lens, dim=0, dtype=torch.int64)
        rows = ends - 1 if self.pooling_type == PoolingType.LAST else ends - lens
        pooled = _truncate(hidden_states[rows], forward_batch.dimensions)
        if not self.normalize:
            return EmbeddingPoolerOutput(pooled)
        if isinstance(pooled, list):
            return EmbeddingPoolerOutput([F.normalize(row, p=2, dim=-1) for row in pooled])
        return EmbeddingPoolerOutput(F.normalize(pooled, p=2, dim=-1))


class CrossEncodingPooler(nn.Module):
    """One score (or vector of class scores) per request from all of its rows.

    `pooler(hidden_i, forward_batch)` if given makes a vector of the rows, else
    `classifier(hidden_i)` sees all rows; the classifier follows a pooler. The activation is the one
    that `config.sbert_ce_default_activation_function` names.
    """

    def __init__(
        self,
        config: Any,
        classifier: Callable[..., torch.Tensor],
        pooler: Callable[..., torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.pooler = pooler
        name = getattr(config, "sbert_ce_default_activation_function", None)  # an optional key
        self.activation = _find_activation(name)

    def forward(
        self, hidden_states: torch.Tensor, forward_batch: ForwardBatch
    ) -> EmbeddingPoolerOutput:
        """hidden_states [T, D] -> [B, number of classes], or [B] for one class."""
        lens = forward_batch.extend_seq_lens_cpu
        assert lens is not None, "pooling needs extend_seq_lens_cpu"
        rows = [self._pool(part, forward_batch) for part in hidden_states.split(lens)]
        scores = self.activation(torch.stack(rows))
        return EmbeddingPoolerOutput(scores.squeeze(-1) if scores.dim() > 1 else scores)

    def _pool(self, hidden: torch.Tensor, forward_batch: ForwardBatch) -> torch.Tensor:
        if self.pooler is not None:
            return self.classifier(self.pooler(hidden, forward_batch))
        return self.classifier(hidden)


def _truncate(
    pooled: torch.Tensor, dimensions: list[int] | None
) -> torch.Tensor | list[torch.Tensor]:
    if not dimensions:
        return pooled
    if len(set(dimensions)) == 1:
        return pooled[:, : dimensions[0]]
    return [row[:width] for row, width in zip(pooled, dimensions, strict=True)]


_ACTIVATIONS: dict[str, type[nn.Module]] = {"Identity": nn.Identity, "Sigmoid": nn.Sigmoid}


def _find_activation(path: str | None) -> nn.Module:
    """Only names that are known: a config must not import code."""
    if path is None:
        return nn.Identity()
    name = path.rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise ValueError(
            f"sbert_ce_default_activation_function={path!r} is not supported; "
            f"supported: {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]()
