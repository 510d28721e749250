"""Every form in which the kernels of sampling may be launched, for compiling them before the first request that asks for it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch

from sglang.srt.layers.sampler import Sampler, edit_logits
from sglang.srt.managers.step_plan import RowSetup, RowWork, SamplingSpec
from sglang.srt.sampling.row_masks import RowMasks
from sglang.srt.sampling.sampling_batch import SamplingTable

_ROWS = (0, 1)


def launch_sampling_forms(vocab_size: int, device: torch.device) -> None:
    """Launch the kernels that edit logits and choose tokens in every form that a batch may ask for.

    Harmless where kernels run and where they are only noted: the tokens that are chosen are not used.
    """
    table, sampler = SamplingTable(len(_ROWS), vocab_size, device), Sampler()
    works = [_work(row) for row in _ROWS]
    words = np.full((len(_ROWS), -(-vocab_size // 32)), -1, np.int32)
    all_masks, one_mask = RowMasks([*_ROWS], words), RowMasks([_ROWS[0]], words[:1])
    for spec in _specs():
        for row in _ROWS:
            table.set_row(RowSetup(row=row, sampling=spec, prompt_ids=[0], output_ids=[0]))
        for masks in (None, all_masks, one_mask) if spec.has_penalties else (None,):
            logits = torch.zeros(len(_ROWS), vocab_size, dtype=torch.float32, device=device)
            batch = table.batch(_ROWS, works, masks)
            edit_logits(logits, batch)
            sampler.choose(logits, batch)


def _specs() -> Iterator[SamplingSpec]:
    """Greedy with all penalties, then draws: at a temperature or not, filtered or not, with a seed or not."""
    yield SamplingSpec(top_k=1, frequency_penalty=0.5, repetition_penalty=1.5)
    for temperature, top_p, seed in itertools.product((1.0, 0.5), (1.0, 0.5), (None, 0)):
        yield SamplingSpec(temperature=temperature, top_p=top_p, seed=seed)


def _work(row: int) -> RowWork:
    return RowWork(
        row=row,
        start=0,
        num_tokens=1,
        token_ids=None,
        prefix_slots=None,
        new_slots=b"",
        sample=True,
    )
