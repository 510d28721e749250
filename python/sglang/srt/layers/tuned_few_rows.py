"""Products of few rows that were measured on an H200. Written by `benchmark/gpu/tune_few_rows.py`; empty until it has run on a card.

(outputs, inputs) of a weight -> {rows: the fields of a `Tile`, or None where torch's product is as fast}.
"""

from __future__ import annotations

TileFields = tuple[int, int, int, bool, int, int]
Key = tuple[int, int]

TUNED: dict[Key, dict[int, TileFields | None]] = {
    (1024, 2048): {
        2: (64, 256, 2, True, 4, 3),
        4: (64, 256, 2, True, 4, 3),
        8: (64, 256, 2, True, 4, 3),
        16: (64, 64, 4, False, 4, 5),
        32: None,
        64: (16, 128, 16, False, 4, 6),
        128: (32, 64, 8, False, 8, 4),
    },
    (1024, 3072): {
        2: (64, 256, 2, True, 4, 3),
        4: (64, 256, 2, True, 4, 3),
        8: (64, 256, 2, True, 4, 3),
        16: (64, 256, 2, True, 4, 3),
        32: (64, 256, 2, True, 4, 3),
        64: (16, 128, 6, False, 4, 4),
        128: (32, 128, 6, False, 8, 5),
    },
    (4096, 1024): {
        2: (64, 256, 4, True, 4, 4),
        4: (64, 256, 4, True, 4, 4),
        8: (64, 128, 8, True, 4, 6),
        16: (64, 128, 8, True, 4, 6),
        32: (64, 128, 4, True, 4, 5),
        64: (32, 128, 8, False, 4, 6),
        128: (32, 128, 8, False, 8, 5),
    },
    (4096, 4096): {
        2: (64, 128, 8, True, 4, 5),
        4: (64, 128, 8, True, 4, 4),
        8: (64, 128, 8, True, 4, 4),
        16: (64, 128, 8, True, 4, 5),
        32: (128, 128, 8, True, 8, 4),
        64: (32, 256, 16, False, 4, 4),
        128: None,
    },
    (4096, 14336): {
        2: (256, 128, 14, True, 8, 3),
        4: (256, 128, 14, True, 8, 3),
        8: (256, 128, 14, True, 8, 3),
        16: None,
        32: (128, 128, 28, True, 8, 4),
        64: (64, 128, 56, False, 4, 5),
        128: None,
    },
    (6144, 1024): {
        2: (64, 256, 4, True, 4, 5),
        4: (64, 256, 4, True, 4, 4),
        8: (64, 128, 8, True, 4, 6),
        16: (64, 128, 8, True, 4, 6),
        32: (64, 128, 4, True, 4, 4),
        64: (64, 128, 8, False, 4, 5),
        128: (64, 128, 8, True, 4, 4),
    },
    (6144, 4096): {
        2: (64, 128, 12, True, 4, 5),
        4: (64, 128, 8, True, 4, 3),
        8: (64, 128, 8, True, 4, 3),
        16: (64, 128, 8, True, 4, 3),
        32: None,
        64: (64, 128, 32, True, 4, 5),
        128: None,
    },
    (28672, 4096): {
        2: None,
        4: None,
        8: None,
        16: None,
        32: None,
        64: (128, 128, 32, False, 4, 4),
        128: (128, 64, 64, False, 8, 6),
    },
    (128256, 4096): {
        2: None,
        4: None,
        8: None,
        16: (32, 128, 32, False, 4, 6),
        32: (64, 128, 32, True, 4, 3),
        64: (128, 128, 32, False, 4, 4),
        128: None,
    },
    (151936, 1024): {
        2: (128, 128, 8, True, 4, 3),
        4: (128, 128, 8, True, 4, 3),
        8: (128, 128, 8, True, 4, 3),
        16: (64, 128, 8, True, 4, 3),
        32: (64, 128, 8, True, 4, 4),
        64: (128, 128, 8, False, 4, 4),
        128: None,
    },
}
