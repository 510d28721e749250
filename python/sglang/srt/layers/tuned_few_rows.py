"""Products of few rows that were measured on an H200. Written by `benchmark/gpu/tune_few_rows.py`; empty until it has run on a card.

(outputs, inputs) of a weight -> {rows: the fields of a `Tile`, or None where torch's product is as fast}.
"""

from __future__ import annotations

TileFields = tuple[int, int, int, bool, int, int]
Key = tuple[int, int]

TUNED: dict[Key, dict[int, TileFields | None]] = {}
