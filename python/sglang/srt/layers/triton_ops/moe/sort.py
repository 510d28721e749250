"""Choices in the order of their experts, in blocks that belong to one expert each.

    slot      0 1 2 3 | 4 5 6 7 | 8 9 ..       blocks of 4 slots
    choice    2 5 9 n | 0 1 3 7 | 4 n ..       n, the number of choices, stands for nobody
    expert       0    |    3    |   3          an expert without choices has no block

How many blocks are used is known on the device alone; the buffers have room for the most that there can be.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sglang.srt.layers.triton_ops import next_power_of_2
from sglang.srt.utils.dependent_launch import (
    launch_dependents,
    launch_options,
    wait_for_earlier,
)

# Up to here every expert's program looks at all choices, in one launch; beyond, each choice is looked at twice, in three.
_MAX_ONE_LAUNCH = 4096
_CHUNK, _LEAST_CHUNK = 1024, 16
# Numbers before the choices, of which one is the count.
_COUNT_ROOM = 4


@dataclass(frozen=True)
class Blocks:
    """`choices` int32 [max_blocks * size], `experts` int32 [max_blocks], and how many blocks are used, `count` int32 [1]."""

    choices: torch.Tensor
    experts: torch.Tensor
    count: torch.Tensor
    size: int
    max_blocks: int


def most_blocks(num_choices: int, num_experts: int, size: int) -> int:
    """How many blocks there are at most, however the choices fall."""
    num_used = min(num_choices, num_experts)
    return (num_choices + num_used * (size - 1)) // size


def sort_bounds() -> list[int]:
    """Numbers of choices behind which `sort_by_expert` launches other kernels."""
    return [_LEAST_CHUNK << n for n in range((_MAX_ONE_LAUNCH // _LEAST_CHUNK).bit_length())]


def no_blocks(size: int, device: torch.device) -> Blocks:
    """Blocks of which none is used: products of them end at once."""
    numbers = torch.zeros(_COUNT_ROOM + size + 1, dtype=torch.int32, device=device)
    count, choices, experts = numbers.split([_COUNT_ROOM, size, 1])
    return Blocks(choices, experts, count[:1], size, 1)


def sort_by_expert(ids: torch.Tensor, num_experts: int, size: int) -> Blocks:
    """Blocks of `size` choices, a power of two. ids int32 [T, k] contiguous; ids outside of 0 .. num_experts - 1 are left out."""
    num_choices, device = ids.numel(), ids.device
    max_blocks = most_blocks(num_choices, num_experts, size)
    # All three begin at whole 16 bytes, whatever the number of choices: kernels are compiled anew for a pointer that does not.
    lengths = [_COUNT_ROOM, max_blocks * size, max_blocks]
    numbers = torch.empty(sum(lengths), dtype=torch.int32, device=device)
    count, choices, experts = numbers.split(lengths)
    blocks = Blocks(choices, experts, count[:1], size, max_blocks)
    columns = next_power_of_2(num_experts + 1)
    if num_choices > _MAX_ONE_LAUNCH:
        _sort_in_three(ids, blocks, num_experts, columns)
        return blocks
    _sort_kernel[(num_experts,)](
        ids,
        blocks.choices,
        blocks.experts,
        blocks.count,
        num_choices,
        EXPERTS=num_experts,
        COLUMNS=columns,
        SIZE=size,
        CHUNK=min(_CHUNK, max(_LEAST_CHUNK, next_power_of_2(num_choices))),
        num_warps=4,
        **launch_options(device),
    )
    return blocks


def _sort_in_three(ids: torch.Tensor, blocks: Blocks, num_experts: int, columns: int) -> None:
    num_choices = ids.numel()
    # Choices of each expert; where its slots begin; each choice's place among its expert's.
    counts = torch.zeros(2, num_experts, dtype=torch.int32, device=ids.device)
    ranks = torch.empty(num_choices, dtype=torch.int32, device=ids.device)
    grid = (triton.cdiv(num_choices, _CHUNK),)
    _rank_kernel[grid](ids, counts, ranks, num_choices, EXPERTS=num_experts, CHUNK=_CHUNK)
    _lay_out_kernel[(num_experts,)](
        counts,
        counts[1],
        blocks.choices,
        blocks.experts,
        blocks.count,
        num_choices,
        EXPERTS=num_experts,
        COLUMNS=columns,
        SIZE=blocks.size,
    )
    _place_kernel[grid](
        ids, counts[1], ranks, blocks.choices, num_choices, EXPERTS=num_experts, CHUNK=_CHUNK
    )


@triton.jit
def _load_ids(ids, index, num_choices, EXPERTS: tl.constexpr):
    """EXPERTS stands for all ids that are left out."""
    found = tl.load(ids + index, mask=index < num_choices, other=-1)
    return tl.where((found >= 0) & (found < EXPERTS), found, EXPERTS)


@triton.jit
def _begin_expert(
    totals, expert, choices, experts, count, num_choices, EXPERTS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    """Write what an expert's blocks hold besides its choices, and return its first slot. totals [COLUMNS]: choices of all experts."""
    column = tl.arange(0, COLUMNS)
    num_blocks = tl.where(column < EXPERTS, (totals + SIZE - 1) // SIZE, 0)
    first = tl.sum(tl.where(column < expert, num_blocks, 0), 0)
    mine = tl.sum(tl.where(column == expert, num_blocks, 0), 0)
    num_mine = tl.sum(tl.where(column == expert, totals, 0), 0)
    for start in range(0, mine, 32):
        block = start + tl.arange(0, 32)
        tl.store(experts + first + block, tl.zeros([32], tl.int32) + expert, mask=block < mine)
    slot = num_mine + tl.arange(0, SIZE)
    nobody = tl.zeros([SIZE], tl.int32) + num_choices
    tl.store(choices + first * SIZE + slot, nobody, mask=slot < mine * SIZE)
    if expert == 0:
        tl.store(count, tl.sum(num_blocks, 0))
    return first * SIZE


@triton.jit(do_not_specialize=["num_choices"])
def _sort_kernel(
    ids,
    choices,
    experts,
    count,
    num_choices,
    EXPERTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program for each expert."""
    launch_dependents(PDL)
    expert = tl.program_id(0)
    index = tl.arange(0, CHUNK)
    totals = tl.zeros([COLUMNS], tl.int32)
    wait_for_earlier(PDL)
    for start in range(0, num_choices, CHUNK):
        totals += tl.histogram(_load_ids(ids, start + index, num_choices, EXPERTS), COLUMNS)
    first = _begin_expert(
        totals, expert, choices, experts, count, num_choices, EXPERTS, COLUMNS, SIZE
    )
    for start in range(0, num_choices, CHUNK):
        is_mine = _load_ids(ids, start + index, num_choices, EXPERTS) == expert
        ones = is_mine.to(tl.int32)
        rank = tl.cumsum(ones, 0) - 1
        tl.store(choices + first + rank, start + index, mask=is_mine)
        first += tl.sum(ones, 0)


@triton.jit(do_not_specialize=["num_choices"])
def _rank_kernel(ids, counts, ranks, num_choices, EXPERTS: tl.constexpr, CHUNK: tl.constexpr):
    """Which of its expert's choices a choice is, in any order: a row of a product does not depend on its neighbours."""
    index = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    expert = _load_ids(ids, index, num_choices, EXPERTS)
    is_here = expert < EXPERTS
    rank = tl.atomic_add(counts + expert, 1, mask=is_here, sem="relaxed")
    tl.store(ranks + index, rank, mask=is_here)


@triton.jit(do_not_specialize=["num_choices"])
def _lay_out_kernel(
    counts,
    firsts,
    choices,
    experts,
    count,
    num_choices,
    EXPERTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SIZE: tl.constexpr,
):
    expert = tl.program_id(0)
    column = tl.arange(0, COLUMNS)
    totals = tl.load(counts + column, mask=column < EXPERTS, other=0)
    first = _begin_expert(
        totals, expert, choices, experts, count, num_choices, EXPERTS, COLUMNS, SIZE
    )
    tl.store(firsts + expert, first)


@triton.jit(do_not_specialize=["num_choices"])
def _place_kernel(
    ids, firsts, ranks, choices, num_choices, EXPERTS: tl.constexpr, CHUNK: tl.constexpr
):
    index = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    expert = _load_ids(ids, index, num_choices, EXPERTS)
    is_here = expert < EXPERTS
    first = tl.load(firsts + expert, mask=is_here, other=0)
    rank = tl.load(ranks + index, mask=is_here, other=0)
    tl.store(choices + first + rank, index, mask=is_here)
