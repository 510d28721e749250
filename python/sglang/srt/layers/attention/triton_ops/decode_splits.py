"""The splits of a decode, weighted by their sums of exponentials and added up: by the last of their programs, or by a second kernel.

Counters belong to the device. They are zero between launches, so launches on a device must follow each other, as in one stream.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from sglang.srt.layers.attention.triton_ops import plan
from sglang.srt.layers.attention.triton_ops.common import LOG2_E
from sglang.srt.utils.dependent_launch import (
    launch_dependents,
    launch_options,
    wait_for_earlier,
)

if TYPE_CHECKING:
    from sglang.srt.layers.attention.triton_ops.decode import DecodeOptions

# Splits that a program combines in one go, all of them asked for at once.
TEAM = 8
# Values of the output that the program of a request and kv head combines; more are the second kernel's.
_MOST_COMBINED = 1024
_MAX_COUNTERS = 1 << 16


def suits_last_program(num_values: int, num_counters: int) -> bool:
    """Are the outputs of a request and block of heads few enough for one program to combine?"""
    return num_values <= _MOST_COMBINED and num_counters <= _MAX_COUNTERS


@functools.cache
def counters(device: torch.device) -> torch.Tensor:
    """Programs that have left their part, for each team of a request and block of heads, and teams that have."""
    return torch.zeros(_MAX_COUNTERS, dtype=torch.int32, device=device)


def combine_splits(
    parts: torch.Tensor,  # float32 [B, H, splits and teams, d_v]
    levels: torch.Tensor,  # float32 [B, H, splits and teams]
    out: torch.Tensor,  # [B, H, d_v]
    lens: torch.Tensor,  # [B]
    num_splits: int,
    split_len: torch.Tensor,  # int32 [1]
    options: DecodeOptions,
) -> None:
    """The second kernel: fills `out` from what the first left in the splits' places."""
    batch, num_heads, v_dim = out.shape
    _combine_kernel[(num_heads, batch)](
        parts,
        levels,
        out,
        lens,
        split_len,
        parts if options.sinks is None else options.sinks,
        options.window,
        num_splits,
        NUM_HEADS=num_heads,
        V_DIM=v_dim,
        BLOCK_V=max(16, plan.next_power_of_2(v_dim)),
        TEAM=TEAM,
        BLOCK_S=32,
        CHUNK=options.chunk,
        LOCAL=options.window > 0 or options.chunk > 0,
        SINKS=options.sinks is not None,
        num_warps=4,
        **launch_options(out.device),
    )


@triton.jit
def first_visible(length, window, CHUNK: tl.constexpr, LOCAL: tl.constexpr):
    """The first key that the query at position `length - 1` sees."""
    first = 0
    if LOCAL:
        first = tl.where(window > 0, tl.maximum(length - 1 - window, 0), 0)
        if CHUNK > 0:
            first = tl.maximum(first, tl.maximum(length - 1, 0) // CHUNK * CHUNK)
    return first


@triton.jit
def end_split(
    out,
    parts,
    levels,
    counters,
    sinks,
    split,
    used,
    num_splits,
    num_teams,
    request,
    kv_head,
    head_block,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_V: tl.constexpr,
    SINKS: tl.constexpr,
    ROWS: tl.constexpr,
    TEAM: tl.constexpr,
):
    """Combines the splits of this program's team if it is the team's last, and the teams' if it is the last of all."""
    row = tl.arange(0, ROWS)
    group_head = head_block * HEADS + row
    is_row = (row < HEADS) & (group_head < GROUP)
    head = kv_head * GROUP + group_head
    out_row = request * NUM_HEADS + head
    base = out_row * (num_splits + num_teams)
    v_dims = tl.arange(0, BLOCK_V)
    is_out = is_row[:, None] & (v_dims[None, :] < V_DIM)
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_V], tl.float32)
    # A counter for each team, and one for all teams.
    counter = counters + (request * tl.num_programs(1) + tl.program_id(1)) * (num_teams + 1)
    team = split // TEAM
    in_team = tl.minimum(used - team * TEAM, TEAM)
    is_last = _arrive(counter + team, in_team)
    if is_last & (used > TEAM):
        peak, total, acc = _add_parts(
            parts, levels, base + team * TEAM, in_team, is_row, peak, total, acc, V_DIM, BLOCK_V, TEAM
        )  # fmt: skip
        mine = base + num_splits + team
        tl.store(parts + mine[:, None] * V_DIM + v_dims[None, :], acc / total[:, None], mask=is_out)
        tl.store(levels + mine, peak + tl.log2(total), mask=is_row)
        is_last = _arrive(counter + num_teams, tl.cdiv(used, TEAM))
    if is_last:
        if SINKS:
            peak = tl.load(sinks + head, mask=is_row, other=0.0).to(tl.float32) * LOG2_E
            total = tl.full([ROWS], 1.0, tl.float32)
        else:
            peak = tl.full([ROWS], float("-inf"), tl.float32)
            total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, BLOCK_V], tl.float32)
        first = tl.where(used > TEAM, num_splits, 0)
        count = tl.where(used > TEAM, tl.cdiv(used, TEAM), used)
        for block in range(0, count, TEAM):
            peak, total, acc = _add_parts(
                parts, levels, base + first + block, count - block, is_row, peak, total, acc, V_DIM, BLOCK_V, TEAM
            )  # fmt: skip
        result = acc / total[:, None]
        target = out + out_row[:, None] * V_DIM + v_dims[None, :]
        tl.store(target, result.to(out.dtype.element_ty), mask=is_out)


@triton.jit
def _arrive(counter, wanted):
    """Whether this is the last of `wanted` programs; the counter is zero again then. What all of them wrote before can be read."""
    # All of the program's parts are written before its one thread says so.
    tl.debug_barrier()
    is_last = tl.atomic_add(counter, 1, sem="acq_rel") == wanted - 1
    if is_last:
        tl.store(counter, 0)
    return is_last


@triton.jit
def _add_parts(
    parts,
    levels,
    first,
    count,
    is_row,
    peak,
    total,
    acc,
    V_DIM: tl.constexpr,
    BLOCK_V: tl.constexpr,
    TEAM: tl.constexpr,
):
    """Adds up to TEAM parts of each row, `first` [ROWS] and those behind it."""
    index = tl.arange(0, TEAM)
    v_dims = tl.arange(0, BLOCK_V)
    place = first[:, None] + index[None, :]
    is_part = is_row[:, None] & (index < count)[None, :]
    # Not from this processor's own cache, which does not know what others wrote.
    level = tl.load(levels + place, mask=is_part, other=float("-inf"), cache_modifier=".cg")
    level = tl.where(is_row[:, None], level, 0.0)
    part = tl.load(
        parts + place[:, :, None] * V_DIM + v_dims[None, None, :],
        mask=is_part[:, :, None] & (v_dims < V_DIM)[None, None, :],
        other=0.0,
        cache_modifier=".cg",
    )
    new_peak = tl.maximum(peak, tl.max(level, 1))
    decay = tl.exp2(peak - new_peak)
    weights = tl.exp2(level - new_peak[:, None])
    acc = acc * decay[:, None] + tl.sum(weights[:, :, None] * part, 1)
    return new_peak, total * decay + tl.sum(weights, 1), acc


@triton.jit(
    do_not_specialize=["window", "num_splits"],
    do_not_specialize_on_alignment=["lens", "split_len"],
)
def _combine_kernel(
    parts,
    levels,
    out,
    lens,
    split_len,
    sinks,
    window,
    num_splits,
    NUM_HEADS: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_V: tl.constexpr,
    TEAM: tl.constexpr,
    BLOCK_S: tl.constexpr,
    CHUNK: tl.constexpr,
    LOCAL: tl.constexpr,
    SINKS: tl.constexpr,
    PDL: tl.constexpr,
):
    """The splits of one request and head, weighted by their sums of exponentials. Splits that no key fell into were
    not written and are not read."""
    launch_dependents(PDL)
    head = tl.program_id(0)
    request = tl.program_id(1).to(tl.int64)
    wait_for_earlier(PDL)
    length = tl.load(lens + request).to(tl.int32)
    span = tl.load(split_len)
    used = (length - first_visible(length, window, CHUNK, LOCAL) + span - 1) // span

    out_row = request * NUM_HEADS + head
    part_base = out_row * (num_splits + tl.cdiv(num_splits, TEAM))
    v_dims = tl.arange(0, BLOCK_V)
    if SINKS:
        peak = tl.load(sinks + head).to(tl.float32) * LOG2_E
        total = 1.0
    else:
        peak = float("-inf")
        total = 0.0
    acc = tl.zeros([BLOCK_V], tl.float32)
    for block in range(0, used, BLOCK_S):
        split = block + tl.arange(0, BLOCK_S)
        is_used = split < used
        level = tl.load(levels + part_base + split, mask=is_used, other=float("-inf"))
        new_peak = tl.maximum(peak, tl.max(level, 0))
        decay = tl.exp2(peak - new_peak)
        weights = tl.exp2(level - new_peak)
        part = tl.load(
            parts + (part_base + split)[:, None] * V_DIM + v_dims[None, :],
            mask=is_used[:, None] & (v_dims[None, :] < V_DIM),
            other=0.0,
        )
        acc = acc * decay + tl.sum(weights[:, None] * part, 0)
        total = total * decay + tl.sum(weights, 0)
        peak = new_peak
    result = acc / tl.where(total > 0.0, total, 1.0)
    tl.store(out + out_row * V_DIM + v_dims, result.to(out.dtype.element_ty), mask=v_dims < V_DIM)
