"""What the host decides before an attention kernel runs: tile shapes, tiles of an extend, splits of a decode.

Plain Python and numpy; nothing here waits for a device. Legend: B requests, K kv heads, G query heads per kv head, d
head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Programs that a decode aims at, per multiprocessor: two are resident, the rest evens out the ends.
_PROGRAMS_PER_PROCESSOR = 4
# Shorter splits would write more partial results than they save time, in keys.
_MIN_SPLIT_LEN = 128
# Split lengths are multiples of this, so that blocks of keys fill them.
_SPLIT_MULTIPLE = 64
# Bounds the partial results that a decode keeps.
MAX_SPLITS = 256
# Splits of a captured decode, whose grid cannot follow the lengths.
_MIN_GRAPH_SPLITS = 4
_MAX_GRAPH_SPLITS = 128


@dataclass(frozen=True)
class KernelConfig:
    """Shape of one program: `block_m` query rows (token x head), `block_n` keys at a time."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class HeadDim:
    """A head dim as blocks whose sizes are powers of two: 192 is 128 + 64, 80 is 128 with 48 unused."""

    dim: int
    block: int
    tail: int  # 0 without a second block

    @property
    def padded(self) -> int:
        return self.block + self.tail


def split_head_dim(dim: int) -> HeadDim:
    """The cheapest cover of `dim` by one or two blocks of at least 16."""
    whole = max(16, next_power_of_2(dim))
    if whole == dim or dim < 32:
        return HeadDim(dim, whole, 0)
    half = whole // 2
    tail = max(16, next_power_of_2(dim - half))
    # Two products cost more than one a little wider.
    return HeadDim(dim, half, tail) if half + tail <= whole * 3 // 4 else HeadDim(dim, whole, 0)


def next_power_of_2(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)


def extend_config(num_rows: int, dim: int, v_dim: int, itemsize: int) -> KernelConfig:
    """The program of an extend whose longest request has `num_rows` query rows per kv head."""
    width = max(split_head_dim(dim).padded, next_power_of_2(v_dim))
    if itemsize == 4:  # plain multiply-adds: registers bound the tile
        return KernelConfig(16, 16, 4, 1) if width > 128 else KernelConfig(32, 32, 4, 2)
    if width > 256:
        return KernelConfig(64, 16, 8, 2) if num_rows > 16 else KernelConfig(16, 32, 4, 3)
    if num_rows <= 16:
        return KernelConfig(16, 64, 4, 2)
    if width > 128:
        return KernelConfig(64, 32, 4, 2) if num_rows <= 64 else KernelConfig(128, 64, 8, 2)
    if num_rows <= 64 or width <= 64:
        return KernelConfig(64, 64, 4, 3)
    return KernelConfig(128, 64, 8, 3)


def decode_config(group: int, dim: int, v_dim: int, itemsize: int) -> KernelConfig:
    """The program of a decode with `group` query heads per kv head."""
    width = max(split_head_dim(dim).padded, next_power_of_2(v_dim))
    if itemsize == 4:
        block_n = 16 if width > 256 else 32
        return KernelConfig(16, block_n, 4, 1 if width > 128 else 2)
    block_m = min(64, max(16, next_power_of_2(group)))
    # Slots are loaded a stage before the keys at them: three stages hold one block of keys and values, five hold two.
    if width > 256:
        return KernelConfig(block_m, 32, 8, 2) if block_m > 16 else KernelConfig(16, 32, 4, 3)
    if width > 128:
        return KernelConfig(block_m, 32, 4, 5)
    return KernelConfig(block_m, 128, 4, 3)


def build_tiles(new_lens: np.ndarray, prefix_lens: np.ndarray, tokens_per_tile: int) -> np.ndarray:
    """The tiles of an extend, int32 [N, 2]: request and its first token in the tile.

    The tile with most keys comes first, so that the last ones to run are short.
    """
    counts = -(-new_lens // tokens_per_tile)
    total = int(counts.sum())
    requests = np.repeat(np.arange(len(new_lens)), counts)
    index = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    tiles = np.stack([requests, index * tokens_per_tile], axis=1)
    num_keys = prefix_lens[requests] + tiles[:, 1]
    return np.ascontiguousarray(tiles[np.argsort(-num_keys, kind="stable")], dtype=np.int32)


def pad_tiles(tiles: np.ndarray, count: int, empty_request: int) -> np.ndarray:
    """`tiles` and behind them tiles of a request without tokens, int32 [count, 2]."""
    padded = np.zeros((count, 2), np.int32)
    padded[:, 0] = empty_request
    padded[: len(tiles)] = tiles
    return padded


@dataclass(frozen=True)
class SplitPlan:
    """A decode in which every `split_len` visible keys of a request are one program's work."""

    num_splits: int
    split_len: int


def plan_splits(visible_lens: np.ndarray, num_kv_heads: int, num_processors: int) -> SplitPlan:
    """Even work for all processors, whatever the lengths. `visible_lens` [B]: keys that each request sees."""
    longest = max(1, int(visible_lens.max()))
    target = max(1, _PROGRAMS_PER_PROCESSOR * num_processors // num_kv_heads)
    even = ceil_div(int(visible_lens.sum()), target)
    least = ceil_div(longest, MAX_SPLITS)
    split_len = round_up(max(even, least, _MIN_SPLIT_LEN), _SPLIT_MULTIPLE)
    return SplitPlan(ceil_div(longest, split_len), split_len)


def count_graph_splits(batch_size: int, num_kv_heads: int, num_processors: int) -> int:
    """Splits of a captured decode: the grid of its replays, whatever their lengths."""
    programs = batch_size * num_kv_heads
    wanted = ceil_div(2 * _PROGRAMS_PER_PROCESSOR * num_processors, programs)
    return min(_MAX_GRAPH_SPLITS, max(_MIN_GRAPH_SPLITS, wanted))


def fit_splits(plan: SplitPlan, num_splits: int) -> SplitPlan:
    """`plan` with longer splits where it has more than `num_splits`."""
    longest = plan.num_splits * plan.split_len
    split_len = max(plan.split_len, round_up(ceil_div(longest, num_splits), _SPLIT_MULTIPLE))
    return SplitPlan(num_splits, split_len)


def round_up(number: int, multiple: int) -> int:
    return ceil_div(number, multiple) * multiple
