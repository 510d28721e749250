"""What identifies media: a digest per image, video or sound, and the prefix-cache keys made of it.

A pad value has 30 bits, so two different images may share one. Nothing that decides about sharing therefore looks at pad values: the
prefix cache and the embedding cache use SHA-256 of all that an item's embedding depends on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sglang.srt.environ import envs
from sglang.srt.multimodal.inputs import (
    PAD_VALUE_START,
    MultimodalDataItem,
    content_parts,
)

_GRID_KEYS = ("image_grid_thw", "video_grid_thw")
_POSITIVE = np.int64(2**63 - 1)


def split_item(item: MultimodalDataItem) -> list[MultimodalDataItem]:
    """One item per image (video, sound), in order; `[item]` when its parts cannot be told apart.

    Parts share memory with the item. They can be told apart when the feature has one entry per offset pair, or as many rows as
    the patch grids say.
    """
    offsets = item.offsets or []
    count = len(offsets)
    if count < 2:
        return [item]
    data, field = item.feature, "feature"
    if item.precomputed_embeddings is not None:
        data, field = item.precomputed_embeddings, "precomputed_embeddings"
    pieces = _pieces(item, data, [last - first + 1 for first, last in offsets])
    if pieces is None:
        return [item]
    digests = item.digests or []
    return [
        dataclasses.replace(
            item,
            **{field: piece},
            offsets=[offsets[i]],
            digests=[digests[i]] if len(digests) == count else None,
            model_specific_data={
                key: _entry(value, i, count) for key, value in item.model_specific_data.items()
            },
        )
        for i, piece in enumerate(pieces)
    ]


def seal(item: MultimodalDataItem) -> None:
    """Compute `digests` from the content (one per offset pair, one in all without offsets), and `hash` unless it is set.

    Reads all of the feature: for a pool, not for an event loop. With SGLANG_MM_SKIP_COMPUTE_HASH it reads nothing, and media are equal to
    none, not even to themselves in another request.
    """
    if envs.SGLANG_MM_SKIP_COMPUTE_HASH.get():
        item.digests = [os.urandom(32) for _ in item.offsets or [(0, 0)]]
        item.hash = int.from_bytes(item.digests[0][:8], "little")
        return
    parts = split_item(dataclasses.replace(item, digests=None))
    found = [_digest(part) for part in parts]
    count = len(item.offsets or [])
    if len(found) < count:
        found = [hashlib.sha256(found[0] + i.to_bytes(4, "little")).digest() for i in range(count)]
    item.digests = found
    if item.hash is None:
        item.hash = int.from_bytes(hashlib.sha256(b"".join(found)).digest()[:8], "little")


def digests_of(item: MultimodalDataItem) -> list[bytes]:
    """The item's digests, computed when nobody has."""
    if item.digests is None:
        seal(item)
    return item.digests or []


def cache_keys(
    padded_ids: Sequence[int],
    items: Sequence[MultimodalDataItem],
    mrope_positions: torch.Tensor | None = None,  # int64 [3, n]
) -> list[int]:
    """What the prefix cache compares in place of a prompt's ids: tokens as they are, media as negative numbers.

    The rows of an image carry the four words of a digest in turn, 252 bits over any four rows. Media that turn other positions than
    elsewhere (a video at another speed) have other keys.
    """
    keys = np.array(padded_ids, dtype=np.int64)
    is_open = keys >= PAD_VALUE_START
    for item in items:
        if not item.offsets:
            continue
        for (first, last), digest in zip(item.offsets, digests_of(item), strict=True):
            span = slice(first, last + 1)
            turned = b"" if mrope_positions is None else _bytes_of(mrope_positions[:, span])
            keys[span] = _words(digest + turned, last + 1 - first)
            is_open[span] = False
    for value in np.unique(keys[is_open]).tolist():
        same = [item for item in items if item.pad_value == value]
        digest = b"".join(d for item in same for d in digests_of(item))
        where = is_open & (keys == value)
        keys[where] = _words(digest + value.to_bytes(8, "little"), int(where.sum()))
    return keys.tolist()


def _words(data: bytes, count: int) -> np.ndarray:
    """`count` negative int64, the words of a digest of `data` in turn."""
    words = np.frombuffer(hashlib.sha256(data).digest(), "<i8")
    return np.resize(-1 - (words & _POSITIVE), count)


def _digest(item: MultimodalDataItem) -> bytes:
    digest = hashlib.sha256(f"{item.modality.name} {item.format.name};".encode())
    known = item.precomputed_embeddings
    content = [item.feature if known is None else known]
    for key, value in sorted(item.model_specific_data.items()):
        content += [key, value]
    for piece in content_parts(content):
        digest.update(piece)
    return digest.digest()


def _pieces(item: MultimodalDataItem, data: Any, places: list[int]) -> list[Any] | None:
    """The feature of every part, None when it cannot be cut."""
    count = len(places)
    if isinstance(data, (list, tuple)):
        return [data[i : i + 1] for i in range(count)] if len(data) == count else None
    if not isinstance(data, (torch.Tensor, np.ndarray)) or data.ndim == 0:
        return None
    rows: list[int] | None = places
    if item.precomputed_embeddings is None:
        rows = _patches(item, count)
        if rows is None and len(data) == count:
            rows = [1] * count
    if rows is None or sum(rows) != len(data):
        return None
    ends = np.cumsum(rows).tolist()
    return [data[end - size : end] for end, size in zip(ends, rows, strict=True)]


def _patches(item: MultimodalDataItem, count: int) -> list[int] | None:
    """Entries of the feature that belong to each part: patches by its grid, or tiles by their number."""
    tiles = item.model_specific_data.get("num_patches")
    if tiles is not None and len(tiles) == count:
        return [int(size) for size in tiles]
    for key in _GRID_KEYS:
        grids = item.model_specific_data.get(key)
        if grids is not None and len(grids) == count:
            return [math.prod(int(size) for size in grid) for grid in grids]
    return None


def _entry(value: Any, index: int, count: int) -> Any:
    """The part's share of something that has an entry per part; anything else is everybody's."""
    if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim and len(value) == count:
        return value[index : index + 1]
    if isinstance(value, (list, tuple)) and len(value) == count:
        return value[index : index + 1]
    return value


def _bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()
