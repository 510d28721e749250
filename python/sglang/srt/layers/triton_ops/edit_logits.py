"""Changes of logits before a token is chosen, each in one pass over them: penalties on what a request has said, and what a grammar forbids.

The plain forms are in `sampling/penalties.py` and `layers/sampler.py`. Legend: B rows, P rows that a change is for, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sglang.srt.sampling.penalties import OutputPenalty, RepetitionPenalty

_BLOCK = 4096


def penalize_outputs(logits: torch.Tensor, penalty: OutputPenalty) -> None:
    """Subtract frequency x count, and presence where there is a count, from `logits` [B, V] float32."""
    counts = penalty.table.data
    vocab, num_rows = logits.shape[1], penalty.index.numel()
    _outputs_kernel[(num_rows, triton.cdiv(vocab, _BLOCK))](
        logits,
        counts,
        penalty.slots,
        penalty.index,
        penalty.frequency,
        penalty.presence,
        logits.stride(0),
        counts.stride(0),
        vocab,
        BLOCK=_BLOCK,
        num_warps=8,
    )


def penalize_repetition(logits: torch.Tensor, penalty: RepetitionPenalty) -> None:
    """Divide positive, multiply negative values of seen tokens in `logits` [B, V] float32."""
    seen = penalty.table.data.view(torch.uint8)
    vocab, num_rows = logits.shape[1], penalty.index.numel()
    _repetition_kernel[(num_rows, triton.cdiv(vocab, _BLOCK))](
        logits,
        seen,
        penalty.slots,
        penalty.index,
        penalty.penalty,
        logits.stride(0),
        seen.stride(0),
        vocab,
        BLOCK=_BLOCK,
        num_warps=8,
    )


def forbid_unset(logits: torch.Tensor, packed: torch.Tensor, line: torch.Tensor | None) -> None:
    """-inf in `logits` [B, V] float32 where the bit of `packed` [P, W] int32 is clear or missing.

    Row i of `packed` is for row `line[i]` (int64), or i when `line` is None. Bit t % 32 of word t // 32 is token t's.
    """
    vocab, num_rows = logits.shape[1], packed.shape[0]
    _forbid_kernel[(num_rows, triton.cdiv(vocab, _BLOCK))](
        logits,
        packed,
        packed if line is None else line,
        logits.stride(0),
        packed.stride(0),
        packed.shape[1],
        vocab,
        HAS_LINES=line is not None,
        BLOCK=_BLOCK,
        num_warps=8,
    )


@triton.jit
def _outputs_kernel(
    logits, counts, slots, index, frequency, presence, row_stride, slot_stride, vocab, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = token < vocab
    count = tl.load(counts + tl.load(slots + row) * slot_stride + token, mask=inside, other=0)
    penalty = tl.load(frequency + row) * count.to(tl.float32)
    penalty += tl.load(presence + row) * (count > 0).to(tl.float32)
    at = logits + tl.load(index + row) * row_stride + token
    tl.store(at, tl.load(at, mask=inside) - penalty, mask=inside)


@triton.jit
def _repetition_kernel(
    logits, seen, slots, index, penalties, row_stride, slot_stride, vocab, BLOCK: tl.constexpr
):
    row = tl.program_id(0)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = token < vocab
    is_seen = tl.load(seen + tl.load(slots + row) * slot_stride + token, mask=inside, other=0) != 0
    penalty = tl.load(penalties + row)
    at = logits + tl.load(index + row) * row_stride + token
    value = tl.load(at, mask=is_seen, other=0.0)
    tl.store(at, tl.where(value > 0, value / penalty, value * penalty), mask=is_seen)


@triton.jit
def _forbid_kernel(
    logits, packed, lines, row_stride, word_stride, num_words, vocab, HAS_LINES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0)
    line = row.to(tl.int64)
    if HAS_LINES:
        line = tl.load(lines + row)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at_word = token // 32
    word = tl.load(packed + row * word_stride + at_word, mask=at_word < num_words, other=0)
    is_clear = ((word >> (token % 32)) & 1) == 0
    lowest = tl.full([BLOCK], float("-inf"), tl.float32)
    tl.store(logits + line * row_stride + token, lowest, mask=is_clear & (token < vocab))
