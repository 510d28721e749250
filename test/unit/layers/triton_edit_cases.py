"""Penalties and grammar masks in kernels against their plain torch forms; run by `test_triton_layers.py` in Triton's interpreter, and by
`test/gpu/test_choose_kept_gpu.py` on a GPU.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from sglang.srt.layers import sampler
from sglang.srt.layers.triton_ops import edit_logits as module
from sglang.srt.managers.step_plan import RowSetup, RowWork, SamplingSpec
from sglang.srt.sampling.row_masks import RowMasks
from sglang.srt.sampling.sampling_batch import SamplingBatch, SamplingTable

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
EDIT_DEVICE = "cpu" if IS_INTERPRETED else "cuda"
VOCABS = [50, 128, 1000] + ([] if IS_INTERPRETED else [151936])
COUNTED = {"frequency_penalty": 0.7, "presence_penalty": -0.3}
REPEATED = {"repetition_penalty": 1.3}


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    """Of a row, in the interpreter too."""
    torch.manual_seed(0)
    if IS_INTERPRETED:
        monkeypatch.setattr(module, "_BLOCK", 64)


def edit_batch(specs: list[dict], vocab: int, device: str, masks: dict | None) -> SamplingBatch:
    table = SamplingTable(len(specs) + 1, vocab, device)
    for row, spec in enumerate(specs):
        # Something twice, and the first and the last token.
        seen = {"prompt_ids": [1, 2, vocab - 1], "output_ids": [0, 5, 5, row + 7]}
        table.set_row(RowSetup(row=row, sampling=SamplingSpec(**spec), **seen))
    works = [
        RowWork(
            row=row,
            start=0,
            num_tokens=1,
            token_ids=None,
            prefix_slots=None,
            new_slots=b"",
            sample=True,
        )
        for row in range(len(specs))
    ]
    masks = masks and RowMasks(list(masks), np.stack(list(masks.values())))
    return table.batch(range(len(specs)), works, masks)


def edited(logits: torch.Tensor, specs: list[dict], masks=None) -> tuple[torch.Tensor, ...]:
    """What kernels make of the logits, which lie in wider lines, and what torch makes of them on the CPU."""
    vocab, plain = logits.shape[1], logits.clone()
    wide = torch.zeros(len(logits), vocab + 30, device=EDIT_DEVICE)
    given = wide[:, :vocab].copy_(logits)
    sampler.edit_logits(plain, edit_batch(specs, vocab, "cpu", masks))
    batch = edit_batch(specs, vocab, EDIT_DEVICE, masks)
    if batch.columns.penalties is not None:
        sampler._penalize_in_kernels(batch.columns.penalties, given)
    if batch.grammar is not None:
        sampler._apply_grammar_mask(given, batch.grammar, in_kernels=True)
    assert not wide[:, vocab:].any(), "something behind the vocabulary was changed"
    return given.cpu(), plain


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize(
    "specs",
    [[COUNTED], [REPEATED], [{}, COUNTED | REPEATED, REPEATED, {}, COUNTED]],
    ids=["counted", "repeated", "some of each"],
)
def test_penalties_are_the_plain_ones(vocab, specs):
    logits = torch.randn(len(specs), vocab) * 3
    logits[0, :4] = torch.tensor([0.0, -torch.inf, torch.inf, -0.0])
    found, want = edited(logits, specs)
    assert not torch.equal(want, logits)
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("rows", [[0], [2], [0, 1, 2], [2, 0]])
@pytest.mark.parametrize("missing", [0, 1], ids=["whole", "shorter than the vocabulary"])
def test_masks_are_the_plain_ones(vocab, rows, missing):
    num_words = -(-vocab // 32) - missing
    words = np.random.default_rng(0).integers(-(2**31), 2**31, (3, num_words)).astype(np.int32)
    words[0, 0] = -(2**31)  # the sign's bit alone
    masks = {row: words[row] for row in rows}
    logits = torch.randn(3, vocab)
    found, want = edited(logits, [{"top_k": 1}] * 3, masks)
    assert torch.isinf(want).any() and torch.equal(found, want)


def test_masks_come_after_penalties():
    masks = {1: np.full(2, 0x5555, np.int32)}
    found, want = edited(torch.randn(3, 60), [COUNTED | REPEATED] * 3, masks)
    assert torch.isinf(want[1]).any() and not torch.isinf(want[::2]).any()
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)
