"""Tiles of experts that were measured. Written by `benchmark/gpu/tune_moe.py`; empty until it has run on a card.

(experts of a rank, model width, inner width, gated, bytes of an activation, bytes of a weight) -> {choices: (block_m, first, second)}, with
`first` and `second` the fields of a `Tile`.
"""

from __future__ import annotations

TileFields = tuple[int, int, int, int, int]
Key = tuple[int, int, int, bool, int, int]

TUNED: dict[Key, dict[int, tuple[int, TileFields, TileFields]]] = {}
