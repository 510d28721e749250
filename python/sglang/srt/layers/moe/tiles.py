"""How the products of experts are cut into programs of a GPU.

What holds a product depends on how many choices an expert has: few, and it is the reading of weights, which wants many programs with
many reads on their way; many, and it is the matrix units, which want large tiles. Measured choices (`tuned_tiles`) go before the rule.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from sglang.srt.layers.moe.tuned_tiles import TUNED
from sglang.srt.layers.triton_ops import next_power_of_2

# Of an H200; a rule for it is good enough for its relatives.
_NUM_PROCESSORS = 132
_SHARED_MEMORY = 227 * 1024
# Choices of an expert, on average, up to which the rule has tiles of their own. Above the last (rate of multiplying over rate of reading)
# weights are no longer what a product waits for.
_AVERAGES = (8, 20, 170)
# Programs for each processor below which a product is cut finer.
_MIN_WAVES = 3


@dataclass(frozen=True)
class Tile:
    """One product: outputs (of gate and of up) and inputs of a tile, blocks of choices that share a pass over the outputs.

    For single choices, `block_n` rows are read in pieces of `block_k`.
    """

    block_n: int
    block_k: int
    group_m: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Tiles:
    """Both products of a layer. `block_m` choices make a block; 1: every choice by itself, without blocks."""

    block_m: int
    first: Tile
    second: Tile

    @property
    def is_single(self) -> bool:
        return self.block_m == 1


@dataclass(frozen=True)
class Shape:
    """What is multiplied: `num_choices` of `num_tokens` over `num_experts` (of all ranks), `num_local` of them here."""

    num_tokens: int
    num_choices: int
    num_experts: int
    num_local: int
    hidden: int
    inner: int
    is_gated: bool
    row_bytes: int
    weight_bytes: int
    may_be_single: bool = True
    shared_memory: int = _SHARED_MEMORY

    @property
    def key(self) -> tuple[int, int, int, bool, int, int]:
        """Of the table of measured tiles."""
        sizes = self.num_local, self.hidden, self.inner
        return *sizes, self.is_gated, self.row_bytes, self.weight_bytes


@functools.lru_cache(maxsize=4096)
def choose_tiles(shape: Shape) -> Tiles:
    """Measured tiles of the nearest number of choices, else the rule's."""
    tiles = _measured(shape)
    if tiles is not None and (shape.may_be_single or not tiles.is_single):
        return tiles
    return rule_tiles(shape)


def tile_bounds(shape: Shape) -> list[int]:
    """Numbers of choices behind which `choose_tiles` may choose others; `shape` has any number of tokens."""
    ends = [int(most * shape.num_experts) for most in _AVERAGES]
    return [*range(shape.num_experts + 1), *ends, *TUNED.get(shape.key, ())]


def rule_tiles(shape: Shape) -> Tiles:
    """What the shape suggests, whether or not it was measured."""
    # Choices that hardly ever meet in an expert: then every one reads its own weights anyway.
    are_alone = shape.num_tokens == 1 or 4 * shape.num_choices <= shape.num_experts
    if are_alone and shape.may_be_single:
        return _single_tiles(shape)
    block_m, first, second = _rule(shape.num_choices / shape.num_experts)
    num_halves = 2 if shape.is_gated else 1
    return Tiles(
        block_m,
        _fit(first, shape, block_m, shape.inner, shape.hidden, num_halves),
        _fit(second, shape, block_m, shape.hidden, shape.inner, 1),
    )


def _measured(shape: Shape) -> Tiles | None:
    """The entry for the fewest choices that are not fewer than these, else for the most. Measured on an H200, so not for less memory."""
    entries = TUNED.get(shape.key)
    if not entries or shape.shared_memory < _SHARED_MEMORY:
        return None
    enough = [count for count in entries if count >= shape.num_choices]
    block_m, first, second = entries[min(enough) if enough else max(entries)]
    return Tiles(block_m, Tile(*first), Tile(*second))


def _rule(average: float) -> tuple[int, Tile, Tile]:
    """For 16-bit numbers and `average` choices of an expert. Reasoned from the rates of an H200; what was measured is in the table."""
    few, some, many = _AVERAGES
    if average <= few:
        return 16, Tile(64, 128, 1, 4, 4), Tile(128, 128, 1, 4, 4)
    if average <= some:
        return 32, Tile(64, 128, 4, 4, 4), Tile(128, 128, 4, 4, 4)
    if average <= many:
        return 64, Tile(64, 64, 8, 4, 4), Tile(128, 64, 8, 4, 4)
    return 128, Tile(128, 64, 8, 8, 3), Tile(128, 64, 8, 8, 3)


def _single_tiles(shape: Shape) -> Tiles:
    """Four reads of 16 bytes for each thread at a time.

    In the first product threads side by side hold eight columns each, so that the row meets the weights without an exchange.
    """
    rows = 4 if shape.weight_bytes == 1 else 2
    piece = min(1024, next_power_of_2(shape.hidden))
    first = Tile(rows, piece, 1, max(1, piece // 256), 1)
    lines = 2 * next_power_of_2(shape.num_choices // shape.num_tokens)
    piece = min(max(64, 4096 // lines), 1024, next_power_of_2(shape.inner))
    return Tiles(1, first, Tile(2, piece, 1, 4, 1))


def _fit(tile: Tile, shape: Shape, block_m: int, num_out: int, width: int, num_halves: int) -> Tile:
    """No larger than the product, with enough programs for the processors and stages that fit into shared memory."""
    least_k = 32 if shape.row_bytes == 1 else 16
    block_k = tile.block_k * 2 // max(shape.row_bytes, shape.weight_bytes)
    block_k = max(least_k, min(block_k, 128, next_power_of_2(width)))
    # Sums that wait for scales, and products in float32, take registers beside the sums themselves.
    is_heavy = shape.row_bytes == 4 or shape.row_bytes != shape.weight_bytes
    block_n = tile.block_n // 2 if is_heavy and block_m >= 64 else tile.block_n
    block_n = max(16, min(block_n, next_power_of_2(num_out)))
    num_blocks = min(shape.num_choices, shape.num_local)
    while block_n > 16 and num_blocks * (-(-num_out // block_n)) < _MIN_WAVES * _NUM_PROCESSORS:
        block_n //= 2
    column_bytes = block_m * shape.row_bytes + num_halves * block_n * shape.weight_bytes
    while block_k > least_k and 2 * block_k * column_bytes > shape.shared_memory:
        block_k //= 2
    num_stages = min(tile.num_stages, max(1, shape.shared_memory // (block_k * column_bytes)))
    return replace(tile, block_n=block_n, block_k=block_k, num_stages=num_stages)
