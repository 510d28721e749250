"""Parts of the kernels of `choose_kept`: which tokens come before one, whether that one is kept, and the search when it is not.

`limits` [B, 8] float32 are a row's: 1 / temperature, top-p, min-p, top-k, two keys of its noise (bits of int32), whether it has a filter.
`parts` [B, 4, N] float32 are those of the first race: score, token, largest logit, sum of exponentials of each block.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sglang.srt.layers.triton_ops.noise import gumbel

# The winner and values above it.
LINES = tl.constexpr(8)


@triton.jit
def go_on(
    winner,
    peak,
    total,
    logits,
    parts,
    limits,
    row,
    stride,
    vocab,
    num_blocks,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    """The winner among the kept ones, of which the first to look at is `winner`. At the latest the best token is kept."""
    TILE: tl.constexpr = BLOCK * STEP
    scale = tl.load(limits + row * 8) * 1.4426950408889634
    peaks = parts + (row * 4 + 2) * num_blocks
    is_kept = winner < 0
    while not is_kept:
        bound = tl.load(logits + row * stride + winner)
        count = tl.zeros([TILE], tl.int32)
        mass = tl.zeros([TILE], tl.float32)
        for first in range(0, num_blocks, STEP):
            if largest(peaks, first, num_blocks, STEP) >= bound:
                value, token = tile(logits, row, stride, first // STEP, vocab, TILE)
                above = is_before(value, token, bound, winner)
                count += above.to(tl.int32)
                mass += tl.where(above, tl.exp2((value - peak) * scale), 0.0)
        is_kept = stays(tl.sum(count, 0), tl.sum(mass, 0), bound, peak, total, limits, row)
        if not is_kept:
            best = tl.full([TILE], float("-inf"), tl.float32)
            best_token = tl.zeros([TILE], tl.int32)
            for first in range(0, num_blocks, STEP):
                if largest(peaks, first, num_blocks, STEP) >= bound:
                    value, token = tile(logits, row, stride, first // STEP, vocab, TILE)
                    score = score_before(value, token, bound, winner, peak, limits, row)
                    best_token = tl.where(score > best, token, best_token)
                    best = tl.maximum(best, score)
            is_best = best == tl.max(best, 0)
            winner = tl.min(tl.where(is_best, best_token, 0x7FFFFFFF), 0)
    return winner


# --- tokens


@triton.jit
def tile(logits, row, stride, block, vocab, BLOCK: tl.constexpr):
    token = block * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(logits + row * stride + token, mask=token < vocab, other=float("-inf"))
    return value, token


@triton.jit
def is_before(value, token, bound, bound_token):
    return (value > bound) | ((value == bound) & (token < bound_token))


@triton.jit
def score_before(value, token, bound, bound_token, peak, limits, row):
    """Of tokens before the bound that min-p keeps; -inf of others."""
    warmth = tl.load(limits + row * 8)
    key_a = tl.load(limits + row * 8 + 4).to(tl.uint32, bitcast=True)
    key_b = tl.load(limits + row * 8 + 5).to(tl.uint32, bitcast=True)
    weight = tl.exp2((value - peak) * (warmth * 1.4426950408889634))
    may_win = is_before(value, token, bound, bound_token) & (
        weight >= tl.load(limits + row * 8 + 2)
    )
    return tl.where(may_win, value * warmth + gumbel(token, key_a, key_b), float("-inf"))


@triton.jit
def pivot(bound, peak, line: tl.constexpr):
    """A value between the winner's and the best one, closer to the best with every line.

    Two kernels compute it and must agree. The difference has its last twelve bits cleared, so that the product is exact, be it
    rounded before the subtraction or not.
    """
    SHARE: tl.constexpr = (45 * 0.7 ** (line - 1)) // 1 / 64
    apart = (peak - bound).to(tl.int32, bitcast=True) & -4096
    return peak - apart.to(tl.float32, bitcast=True) * SHARE


# --- rows


@triton.jit
def summary(parts, limits, row, num_blocks, BLOCKS: tl.constexpr):
    """The winner of the first race, the largest logit, the sum of exponentials, and whether the winner may be filtered out."""
    block = tl.arange(0, BLOCKS)
    inside = block < num_blocks
    lines = parts + row * 4 * num_blocks
    winner = best_of(lines, num_blocks, BLOCKS)
    peaks = tl.load(lines + 2 * num_blocks + block, mask=inside, other=float("-inf"))
    sums = tl.load(lines + 3 * num_blocks + block, mask=inside, other=0.0)
    peak = tl.max(peaks, 0)
    is_finite = tl.abs(peak) != float("inf")
    is_open = (tl.load(limits + row * 8 + 6) > 0.0) & is_finite
    base = tl.where(is_finite, peak, 0.0)
    scale = tl.load(limits + row * 8) * 1.4426950408889634
    total = tl.sum(sums * tl.exp2((peaks - base) * scale), 0)
    return winner, peak, total, is_open


@triton.jit
def verdict(
    winner, value, peak, total, limits, counts, masses, row, num_blocks, BLOCKS: tl.constexpr
):  # fmt: skip
    """Whether the winner is kept; else what all kept tokens come before, as a logit and a token."""
    bound, bound_token = value, winner
    block = tl.arange(0, BLOCKS)
    is_kept = winner < 0
    for line in tl.static_range(LINES):
        base = (row * LINES + line) * num_blocks + block
        count = tl.sum(tl.load(counts + base, mask=block < num_blocks, other=0), 0)
        mass = tl.sum(tl.load(masses + base, mask=block < num_blocks, other=0.0), 0)
        if line == 0:
            is_kept = stays(count, mass, value, peak, total, limits, row)
        else:
            is_beyond = uses_up(count, mass, total, limits, row)
            bound = tl.where(is_beyond, pivot(value, peak, line), bound)
            bound_token = tl.where(is_beyond, -1, bound_token)
    return is_kept, bound, bound_token


@triton.jit
def stays(count, mass, value, peak, total, limits, row):
    """Of a token of this logit with so many tokens and so much mass before it. The best stays."""
    warmth = tl.load(limits + row * 8)
    weight = tl.exp2((value - peak) * (warmth * 1.4426950408889634))
    is_beyond = uses_up(count, mass, total, limits, row)
    return (count == 0) | ((weight >= tl.load(limits + row * 8 + 2)) & (is_beyond == 0))


@triton.jit
def uses_up(count, mass, total, limits, row):
    """Have the tokens before used up top-k or top-p? None have not, even of a top-p that is zero as a float32."""
    kept_count = tl.load(limits + row * 8 + 3).to(tl.int32, bitcast=True)
    is_beyond = (count >= kept_count) | (mass >= tl.load(limits + row * 8 + 1) * total)
    return is_beyond & (count > 0)


# --- blocks


@triton.jit
def store_best(out, score, block, num_blocks, BLOCK: tl.constexpr):
    best, index = tl.max(score, 0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(out + block, best)
    tl.store(out + num_blocks + block, (block * BLOCK + index).to(tl.float32, bitcast=True))


@triton.jit
def best_of(parts, num_blocks, BLOCKS: tl.constexpr):
    """The token of the best block, int32; of equal ones the first."""
    block = tl.arange(0, BLOCKS)
    score = tl.load(parts + block, mask=block < num_blocks, other=float("-inf"))
    index = tl.argmax(score, 0, tie_break_left=True)
    return tl.load(parts + num_blocks + index).to(tl.int32, bitcast=True)


@triton.jit
def largest(peaks, first, num_blocks, STEP: tl.constexpr):
    block = first + tl.arange(0, STEP)
    return tl.max(tl.load(peaks + block, mask=block < num_blocks, other=float("-inf")), 0)
