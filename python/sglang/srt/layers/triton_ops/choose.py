"""The next token of every row in one pass over the logits: the largest, or a draw at a temperature.

    next = argmax_t  logits[t] / temperature + g_t,   g_t = -log(-log(u_t)) with u_t uniform; greedy rows have g_t = 0

which draws t with probability softmax(logits / temperature)[t]. The first kernel finds the best of each block of the
vocabulary, the second the best block. Legend: B rows, V vocabulary.
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

_BLOCK = 4096
_DRAW_BLOCK = 2048


@dataclass(frozen=True)
class Draw:
    """What a draw needs: `temperature` [B, 1] float32 (None: 1), `top_k` [B, 1] int64 with 1 for greedy rows, and a
    `seed` that is new for every step."""

    temperature: torch.Tensor | None
    top_k: torch.Tensor
    seed: int


def choose_tokens(
    logits: torch.Tensor, draw: Draw | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [B] int64 and whether a row is bad [B] bool: a NaN or +inf in it, or nothing but -inf. logits [B, V] float32.

    Of equal logits the first wins. The id of a bad row is within the vocabulary. `draw` None: every row is greedy.
    """
    num_rows, vocab = logits.shape
    block = _BLOCK if draw is None else _DRAW_BLOCK
    num_blocks = triton.cdiv(vocab, block)
    device = logits.device
    ids = torch.empty(num_rows, dtype=torch.int64, device=device)
    bad = torch.empty(num_rows, dtype=torch.bool, device=device)
    if num_rows == 0:
        return ids, bad
    # Per block: the best score, its token as a bit pattern, and the largest logit.
    parts = torch.empty(num_rows, 3, num_blocks, dtype=torch.float32, device=device)
    temperature = None if draw is None else draw.temperature
    _block_kernel[(num_rows, num_blocks)](
        logits,
        parts,
        logits if temperature is None else temperature,
        logits if draw is None else draw.top_k,
        0 if draw is None else draw.seed,
        logits.stride(0),
        vocab,
        num_blocks,
        0 if temperature is None else temperature.stride(0),
        0 if draw is None else draw.top_k.stride(0),
        BLOCK=block,
        DRAW=draw is not None,
        TEMPERATURE=temperature is not None,
        num_warps=8 if draw is None else 4,
        **launch_options(device),
    )
    _row_kernel[(num_rows,)](
        parts,
        ids,
        bad,
        num_blocks,
        BLOCK=max(2, next_power_of_2(num_blocks)),
        num_warps=1,
        **launch_options(device),
    )
    return ids, bad


@triton.jit(do_not_specialize=["seed", "vocab", "num_blocks"])
def _block_kernel(
    logits,
    parts,
    temperature,
    top_k,
    seed,
    stride,
    vocab,
    num_blocks,
    temperature_stride,
    top_k_stride,
    BLOCK: tl.constexpr,
    DRAW: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    PDL: tl.constexpr,
):
    launch_dependents(PDL)
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    token = block * BLOCK + tl.arange(0, BLOCK)
    wait_for_earlier(PDL)
    value = tl.load(logits + row * stride + token, mask=token < vocab, other=float("-inf"))
    value = tl.where(value != value, float("inf"), value)  # a NaN is its row's maximum
    peak = tl.max(value, 0)
    score = value
    if DRAW:
        if TEMPERATURE:
            score = score / tl.load(temperature + row * temperature_stride)
        if tl.load(top_k + row * top_k_stride) != 1:
            # 23 random bits and a half: neither 0 nor 1, so both logarithms are finite.
            bits = tl.randint(seed, (row * vocab + token).to(tl.int32)).to(tl.uint32, bitcast=True)
            uniform = ((bits >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07
            score = score - tl.log(-tl.log(uniform))
    best, index = tl.max(score, 0, return_indices=True, return_indices_tie_break_left=True)
    base = parts + row * 3 * num_blocks + block
    tl.store(base, best)
    tl.store(base + num_blocks, (block * BLOCK + index).to(tl.float32, bitcast=True))
    tl.store(base + 2 * num_blocks, peak)


@triton.jit(do_not_specialize=["num_blocks"])
def _row_kernel(parts, ids, bad, num_blocks, BLOCK: tl.constexpr, PDL: tl.constexpr):
    launch_dependents(PDL)
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCK)
    base = parts + row * 3 * num_blocks + block
    inside = block < num_blocks
    wait_for_earlier(PDL)
    best = tl.load(base, mask=inside, other=float("-inf"))
    index = tl.argmax(best, 0, tie_break_left=True)
    peak = tl.max(tl.load(base + 2 * num_blocks, mask=inside, other=float("-inf")), 0)
    token = tl.load(parts + row * 3 * num_blocks + num_blocks + index).to(tl.int32, bitcast=True)
    tl.store(ids + row, token.to(tl.int64))
    tl.store(bad + row, tl.abs(peak) == float("inf"))
