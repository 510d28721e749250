"""When a product of few rows with a plain weight goes through our kernel, and how it is cut into programs.

Such a product is nothing but reading the weight, which wants at least two programs on each processor and some 40 KiB of each processor's
reads on their way. Measured choices (`tuned_few_rows`) decide; a weight that was not measured goes through the kernel only where torch is
known to be slow: where it is small. Which kernel multiplies thus depends on the number of rows, and with it the last bit of a result.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from sglang.srt.layers.triton_ops import has_triton, next_power_of_2
from sglang.srt.layers.tuned_few_rows import TUNED

MAX_ROWS = 128
# Of an H200: the table holds for Hopper cards with as many processors, which have as much shared memory.
NUM_PROCESSORS = 132
SHARED_MEMORY = 227 * 1024
# A tile of outputs that several programs add up has a counter.
MAX_COUNTERS = 8192
# Bytes of a weight that was not measured: fewer are soon read in any way, of more torch reads at a fair rate.
_LEAST_BYTES, _MOST_BYTES = 1 << 20, 16 << 20
_MOST_UNMEASURED_ROWS = 64


@dataclass(frozen=True)
class Tile:
    """What a program does: `chunk` times [rows, block_k] with [block_n, block_k], tile of outputs after tile of outputs.

    A `chunk` that ends within a tile leaves a part of its sum to be added up; it is at least 2. `is_swapped`: the weight is the left
    factor, so that its outputs, not the rows, fill up the matrix units.
    """

    block_n: int
    block_k: int
    chunk: int
    is_swapped: bool
    num_warps: int
    num_stages: int

    def pieces(self, width: int) -> int:
        """Steps along the inputs that make up a tile of outputs."""
        return -(-width // self.block_k)

    def num_tiles(self, num_out: int) -> int:
        return -(-num_out // self.block_n)

    def num_programs(self, num_out: int, width: int) -> int:
        return -(-self.num_tiles(num_out) * self.pieces(width) // self.chunk)

    def is_split(self, width: int) -> bool:
        """Do several programs share a tile of outputs?"""
        return self.chunk % self.pieces(width) != 0

    def stage_bytes(self, block_m: int) -> int:
        """Of shared memory that one step's 16-bit inputs take."""
        return 2 * self.block_k * (block_m + self.block_n)


def block_rows(num_rows: int) -> int:
    """Rows of a program, filled up."""
    return max(16, next_power_of_2(num_rows))


def few_rows_tile(x: torch.Tensor, weight: torch.Tensor) -> Tile | None:
    """The tile for x [rows, in] times weight [out, in] of one 16-bit dtype; None where it is torch's product to compute."""
    if not x.is_cuda or x.dim() != 2 or not 1 < x.shape[0] <= MAX_ROWS or x.element_size() != 2:
        return None
    is_plain = x.dtype == weight.dtype and weight.dim() == 2
    if not is_plain or x.stride(1) != 1 or weight.stride(1) != 1 or not _is_measured(x.device):
        return None
    # Reads are of 16 bytes, and Triton knows of multiples of 16 only.
    if weight.shape[1] % 16 or weight.stride(0) % 16 or weight.data_ptr() % 16 or x.stride(0) % 16:
        return None
    return choose_tile(x.shape[0], weight.shape[0], weight.shape[1])


@functools.lru_cache(maxsize=4096)
def choose_tile(num_rows: int, num_out: int, width: int) -> Tile | None:
    """What was measured for the fewest rows that are not fewer than these; for an unmeasured weight, the rule's where torch is slow."""
    entries = TUNED.get((num_out, width))
    if entries is not None:
        fields = entries[min(enough)] if (enough := [n for n in entries if n >= num_rows]) else None
        return None if fields is None else Tile(*fields)
    is_slow = _LEAST_BYTES <= 2 * num_out * width <= _MOST_BYTES
    if not TUNED or not is_slow or num_rows > _MOST_UNMEASURED_ROWS:
        return None
    return rule(num_rows, num_out, width)


def rule(num_rows: int, num_out: int, width: int) -> Tile:
    """Reasoned: rows are read again for every tile of outputs, so tiles grow with the rows; then two programs for each processor."""
    block_m = block_rows(num_rows)
    is_large = 2 * num_out * width > 64 << 20
    block_n = 128 if is_large and block_m > 16 else (32 if block_m <= 32 else 64)
    block_k = min(128 if block_m + block_n <= 128 else 64, max(16, next_power_of_2(width)))
    num_tiles, pieces = -(-num_out // block_n), -(-width // block_k)
    chunk = _chunk(num_tiles, pieces, is_large)
    is_swapped = block_m < 64 and block_n >= 64
    num_warps = 8 if block_m * block_n > 64 * 128 else 4
    return Tile(block_n, block_k, chunk, is_swapped, num_warps, min(4, chunk + 1))


def _chunk(num_tiles: int, pieces: int, is_large: bool) -> int:
    """Even parts of a tile of outputs where it is small; where it is large, an even share of all steps for each of two programs."""
    num_programs = 2 * NUM_PROCESSORS
    if is_large or num_tiles > MAX_COUNTERS:
        return pieces if num_tiles >= 4 * num_programs else -(-num_tiles * pieces // num_programs)
    divisors = [n for n in range(2, pieces + 1) if pieces % n == 0] or [pieces]
    enough = [n for n in divisors if num_tiles * (pieces // n) >= num_programs]
    return max(enough) if enough else min(divisors)


@functools.cache
def _is_measured(device: torch.device) -> bool:
    """Is it a card like the one that the table is of: Hopper, with as many processors?"""
    if not has_triton() or torch.version.hip is not None:
        return False
    properties = torch.cuda.get_device_properties(device)
    return properties.major == 9 and properties.multi_processor_count == NUM_PROCESSORS
