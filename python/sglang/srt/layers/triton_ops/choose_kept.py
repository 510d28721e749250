"""A draw among what top-k, top-p and min-p keep, without a sort.

What is kept is a head of the order (logit falling, then token rising). So the winner of a race among all tokens is the winner among
the kept ones if it is kept itself, and that is seen by counting and weighing the tokens before it. If it is not kept, nothing behind
it is: the race is run again among those before it.

    race     of each block: best score, largest logit, sum of exponentials
    count    tokens and mass before the winner, and above some values between it and the best
    again    rows whose winner is not kept: a race above the highest of these that is not kept either
    settle   one program a row: goes on, rarely, until a winner is kept

Sums are added up in a fixed order, so that equal inputs draw equal tokens. Legend: B rows, V vocabulary, N blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sglang.srt.layers.triton_ops import next_power_of_2
from sglang.srt.layers.triton_ops.kept_search import (
    LINES,
    best_of,
    go_on,
    is_before,
    pivot,
    score_before,
    store_best,
    summary,
    tile,
    verdict,
)
from sglang.srt.layers.triton_ops.noise import gumbel, noise_keys
from sglang.srt.utils.dependent_launch import (
    launch_dependents,
    launch_options,
    wait_for_earlier,
)

_BLOCK = 2048
# Blocks that one step of a row's program looks at.
_BLOCKS_A_STEP = 4


@dataclass(frozen=True)
class KeptDraw:
    """Parameters of the rows. `temperature`, `top_p`, `min_p` [B, 1] float32; `top_k` [B, 1] int64, 1 for greedy rows; `seed` is new
    for every step. Rows with a seed of their own: `seeds`, `positions` [B] int64, position -1 for the others.

    `is_filtered` False: no row has a filter, and nothing is looked at twice.
    """

    temperature: torch.Tensor | None
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seed: int
    seeds: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    is_filtered: bool = True


def choose_kept(logits: torch.Tensor, draw: KeptDraw) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [B] int64 and whether a row is bad [B] bool: a NaN or +inf in it, or nothing but -inf. logits [B, V] float32.

    A row with a seed gets the token that `Sampler` draws by sorting, but for numbers that round differently: sums of top-p at its
    border, and scores of tokens in a dead heat. Equal logits are kept in the order of their tokens, as by a stable sort; logits that
    differ are in their order even where their probabilities round to one. The id of a bad row is within the vocabulary.
    """
    num_rows, vocab = logits.shape
    num_blocks = triton.cdiv(vocab, _BLOCK)
    device = logits.device
    ids = torch.empty(num_rows, dtype=torch.int64, device=device)
    bad = torch.empty(num_rows, dtype=torch.bool, device=device)
    if num_rows == 0:
        return ids, bad
    limits = torch.empty(num_rows, 8, dtype=torch.float32, device=device)
    parts = torch.empty(num_rows, 4, num_blocks, dtype=torch.float32, device=device)
    _launch_race(logits, parts, limits, draw, num_blocks)
    masses = counts = again = parts
    early = launch_options(device)
    stride = logits.stride(0)
    sizes = {"BLOCK": _BLOCK, "BLOCKS": max(2, next_power_of_2(num_blocks))}
    if draw.is_filtered:
        shape = num_rows, LINES.value, num_blocks
        counts = torch.empty(shape, dtype=torch.int32, device=device)
        masses = torch.empty(shape, dtype=torch.float32, device=device)
        again = torch.empty(num_rows, 2, num_blocks, dtype=torch.float32, device=device)
        grid = (num_rows, num_blocks)
        _count_kernel[grid](
            logits, parts, limits, counts, masses, stride, vocab, num_blocks, **sizes, **early
        )
        _again_kernel[grid](
            logits, parts, limits, counts, masses, again, stride, vocab, num_blocks, **sizes, **early
        )  # fmt: skip
    _settle_kernel[(num_rows,)](
        logits, parts, limits, counts, masses, again, ids, bad, stride, vocab, num_blocks,
        **sizes, STEP=_BLOCKS_A_STEP, FILTERED=draw.is_filtered,
        num_warps=16 if draw.is_filtered else 1, **early,
    )  # fmt: skip
    return ids, bad


def _launch_race(
    logits: torch.Tensor,
    parts: torch.Tensor,
    limits: torch.Tensor,
    draw: KeptDraw,
    num_blocks: int,
) -> None:
    temperature, seeds, positions = draw.temperature, draw.seeds, draw.positions
    _race_kernel[(logits.shape[0], num_blocks)](
        logits,
        parts,
        limits,
        logits if temperature is None else temperature,
        draw.top_k,
        draw.top_p,
        draw.min_p,
        draw.top_k if seeds is None else seeds,
        draw.top_k if positions is None else positions,
        draw.seed,
        logits.stride(0),
        logits.shape[1],
        num_blocks,
        0 if temperature is None else temperature.stride(0),
        draw.top_k.stride(0),
        draw.top_p.stride(0),
        draw.min_p.stride(0),
        BLOCK=_BLOCK,
        TEMPERATURE=temperature is not None,
        SEEDED=seeds is not None,
        **launch_options(logits.device),
    )


@triton.jit(do_not_specialize=["seed", "num_blocks"])
def _race_kernel(
    logits,
    parts,
    limits,
    temperature,
    top_k,
    top_p,
    min_p,
    seeds,
    positions,
    seed,
    stride,
    vocab,
    num_blocks,
    temperature_stride,
    top_k_stride,
    top_p_stride,
    min_p_stride,
    BLOCK: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    SEEDED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Writes parts [B, 4, N]: score and token of the best, largest logit, sum of exponentials; and limits [B, 8]."""
    launch_dependents(PDL)
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    wait_for_earlier(PDL)
    warmth = 1.0
    if TEMPERATURE:
        warmth = 1.0 / tl.load(temperature + row * temperature_stride)
    kept_count = tl.load(top_k + row * top_k_stride).to(tl.int32)
    own_seed = seed.to(tl.int64) | 0x5DEECE6600000000
    position = row
    if SEEDED:
        own_position = tl.load(positions + row)
        if own_position >= 0:
            own_seed = tl.load(seeds + row)
            position = own_position
    key_a, key_b = noise_keys(own_seed, position)
    value, token = tile(logits, row, stride, block, vocab, BLOCK)
    value = tl.where(value != value, float("inf"), value)  # a NaN is its row's maximum
    peak = tl.max(value, 0)
    base = tl.where(tl.abs(peak) == float("inf"), 0.0, peak)
    total = tl.sum(tl.exp2((value - base) * (warmth * 1.4426950408889634)), 0)
    score = value
    if kept_count != 1:
        score = value * warmth + gumbel(token, key_a, key_b)
    store_best(parts + row * 4 * num_blocks, score, block, num_blocks, BLOCK)
    tl.store(parts + (row * 4 + 2) * num_blocks + block, peak)
    tl.store(parts + (row * 4 + 3) * num_blocks + block, total)
    if block == 0:
        mass, least = tl.load(top_p + row * top_p_stride), tl.load(min_p + row * min_p_stride)
        is_open = (kept_count < vocab) | (mass < 1.0) | (least > 0.0)
        is_open = is_open & (kept_count != 1)
        tl.store(limits + row * 8, warmth)
        tl.store(limits + row * 8 + 1, tl.where(mass < 1.0, mass, float("inf")))
        tl.store(limits + row * 8 + 2, least)
        tl.store(limits + row * 8 + 3, kept_count.to(tl.float32, bitcast=True))
        tl.store(limits + row * 8 + 4, key_a.to(tl.float32, bitcast=True))
        tl.store(limits + row * 8 + 5, key_b.to(tl.float32, bitcast=True))
        tl.store(limits + row * 8 + 6, is_open.to(tl.float32))


@triton.jit(do_not_specialize=["num_blocks"])
def _count_kernel(
    logits,
    parts,
    limits,
    counts,
    masses,
    stride,
    vocab,
    num_blocks,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Writes counts and masses [B, LINES, N]: of tokens before the winner, and of those above each value."""
    launch_dependents(PDL)
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    wait_for_earlier(PDL)
    winner, peak, _, is_open = summary(parts, limits, row, num_blocks, BLOCKS)
    if not is_open:
        return
    bound = tl.load(logits + row * stride + winner)
    scale = tl.load(limits + row * 8) * 1.4426950408889634
    # A block whose largest logit is below the winner's is not read.
    is_near = tl.load(parts + (row * 4 + 2) * num_blocks + block) >= bound
    value, token = tile(logits, row, stride, block, tl.where(is_near, vocab, 0), BLOCK)
    weight = tl.exp2((value - peak) * scale)
    out = row * LINES * num_blocks + block
    for line in tl.static_range(LINES):
        above = is_before(value, token, bound, winner)
        if line > 0:
            above = value > pivot(bound, peak, line)
        tl.store(counts + out + line * num_blocks, tl.sum(above.to(tl.int32), 0))
        tl.store(masses + out + line * num_blocks, tl.sum(tl.where(above, weight, 0.0), 0))


@triton.jit(do_not_specialize=["num_blocks"])
def _again_kernel(
    logits,
    parts,
    limits,
    counts,
    masses,
    again,
    stride,
    vocab,
    num_blocks,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Writes again [B, 2, N]: score and token of the best of each block before the bound."""
    launch_dependents(PDL)
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    wait_for_earlier(PDL)
    winner, peak, total, is_open = summary(parts, limits, row, num_blocks, BLOCKS)
    if not is_open:
        return
    value = tl.load(logits + row * stride + winner)
    is_kept, bound, bound_token = verdict(
        winner, value, peak, total, limits, counts, masses, row, num_blocks, BLOCKS
    )
    if is_kept:
        return
    is_near = tl.load(parts + (row * 4 + 2) * num_blocks + block) >= bound
    if not is_near:
        tl.store(again + row * 2 * num_blocks + block, float("-inf"))
        return
    value, token = tile(logits, row, stride, block, vocab, BLOCK)
    score = score_before(value, token, bound, bound_token, peak, limits, row)
    store_best(again + row * 2 * num_blocks, score, block, num_blocks, BLOCK)


@triton.jit(do_not_specialize=["num_blocks"])
def _settle_kernel(
    logits,
    parts,
    limits,
    counts,
    masses,
    again,
    ids,
    bad,
    stride,
    vocab,
    num_blocks,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    STEP: tl.constexpr,
    FILTERED: tl.constexpr,
    PDL: tl.constexpr,
):
    launch_dependents(PDL)
    row = tl.program_id(0).to(tl.int64)
    wait_for_earlier(PDL)
    winner, peak, total, is_open = summary(parts, limits, row, num_blocks, BLOCKS)
    tl.store(bad + row, tl.abs(peak) == float("inf"))
    if FILTERED:
        if is_open:
            value = tl.load(logits + row * stride + winner)
            is_kept, bound, bound_token = verdict(
                winner, value, peak, total, limits, counts, masses, row, num_blocks, BLOCKS
            )
            if not is_kept:
                winner = best_of(again + row * 2 * num_blocks, num_blocks, BLOCKS)
                winner = go_on(
                    winner, peak, total, logits, parts, limits, row, stride, vocab, num_blocks, BLOCK, STEP
                )  # fmt: skip
    tl.store(ids + row, winner.to(tl.int64))
