"""Embeddings of media that were computed before, least recently used first to go, within a number of bytes.

One cache per model: the weak keys are the models, so that two models in one process never meet and a model takes its cache along.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

import torch

from sglang.srt.environ import envs

_caches: WeakKeyDictionary[torch.nn.Module, EmbeddingCache] = WeakKeyDictionary()
_limit: list[int] = []  # bytes, when `init_mm_embedding_cache` was called


class EmbeddingCache:
    """Rows `[n, D]` by digest of the media. `max_bytes` 0 keeps nothing."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._rows: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: bytes) -> torch.Tensor | None:
        rows = self._rows.get(key)
        if rows is not None:
            self._rows.move_to_end(key)
        return rows

    def put(self, key: bytes, rows: torch.Tensor) -> None:
        """Keep `rows`; what is larger than the whole cache is not kept."""
        size = rows.nbytes
        if key in self._rows or size > self.max_bytes:
            return
        while self.num_bytes + size > self.max_bytes:
            _, oldest = self._rows.popitem(last=False)
            self.num_bytes -= oldest.nbytes
        # A copy, where the rows are a part of something larger that they would keep alive.
        self._rows[key] = rows.clone() if rows.untyped_storage().nbytes() > size else rows
        self.num_bytes += size


def init_mm_embedding_cache(max_size: int) -> None:
    """Set the size of every model's cache in bytes and empty them; without it SGLANG_VLM_CACHE_SIZE_MB counts."""
    _limit[:] = [max_size]
    _caches.clear()


def clear_mm_embedding_caches() -> None:
    """Forget all rows, as after a change of weights."""
    _caches.clear()


def cache_of(model: Any) -> EmbeddingCache:
    """The cache of a model; one that keeps nothing for what is no module."""
    if not isinstance(model, torch.nn.Module):
        return EmbeddingCache(0)
    if model not in _caches:
        size = _limit[0] if _limit else envs.SGLANG_VLM_CACHE_SIZE_MB.get() * 2**20
        _caches[model] = EmbeddingCache(size)
    return _caches[model]
