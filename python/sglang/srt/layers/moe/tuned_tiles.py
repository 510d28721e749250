"""Tiles of experts that were measured on an H200. Written by `benchmark/gpu/tune_moe.py`.

(experts of a rank, model width, inner width, gated, bytes of an activation, bytes of a weight) -> {choices: (block_m, first, second)}, with
`first` and `second` the fields of a `Tile`.
"""

from __future__ import annotations

TileFields = tuple[int, int, int, int, int]
Key = tuple[int, int, int, bool, int, int]

TUNED: dict[Key, dict[int, tuple[int, TileFields, TileFields]]] = {
    (128, 2048, 768, True, 2, 2): {
        8: (1, (1, 1024, 1, 4, 1), (2, 256, 1, 4, 1)),
        16: (1, (2, 1024, 1, 2, 1), (4, 256, 1, 4, 1)),
        32: (1, (1, 1024, 1, 2, 1), (2, 256, 1, 4, 1)),
        64: (16, (64, 128, 1, 4, 5), (128, 64, 1, 8, 4)),
        128: (16, (128, 128, 1, 8, 2), (128, 128, 1, 4, 4)),
        256: (16, (64, 128, 1, 8, 4), (128, 64, 1, 4, 4)),
        512: (16, (64, 128, 1, 4, 4), (128, 128, 1, 4, 4)),
        1024: (16, (64, 128, 1, 4, 3), (128, 128, 1, 4, 4)),
        2048: (32, (128, 128, 8, 8, 2), (128, 64, 8, 4, 5)),
        4096: (64, (128, 64, 8, 4, 5), (128, 64, 8, 4, 4)),
        8192: (128, (128, 64, 8, 8, 4), (256, 64, 8, 8, 4)),
        16384: (128, (128, 64, 8, 8, 4), (256, 64, 8, 8, 4)),
        32768: (128, (128, 64, 1, 8, 4), (256, 64, 8, 8, 3)),
        65536: (128, (128, 64, 8, 8, 3), (256, 64, 8, 8, 4)),
    },
}
