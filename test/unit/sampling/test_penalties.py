"""Penalties against formulas on plain Python counts, over several steps, rows and retractions."""

from __future__ import annotations

import collections

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from sglang.srt.layers.sampler import Sampler
from sglang.srt.managers.step_plan import RowSetup, RowWork, SamplingSpec
from sglang.srt.sampling.penalties import PenaltyTable
from sglang.srt.sampling.sampling_batch import SamplingTable

VOCAB = 40


def setup_of(row: int, prompt: list[int], outputs: list[int], **spec) -> RowSetup:
    return RowSetup(
        row=row, sampling=SamplingSpec(**spec), prompt_ids=prompt, output_ids=list(outputs)
    )


def work_of(row: int) -> RowWork:
    return RowWork(
        row=row,
        start=0,
        num_tokens=1,
        token_ids=None,
        prefix_slots=None,
        new_slots=b"",
        sample=True,
    )


def expected_logits(logits: torch.Tensor, setup: RowSetup, outputs: list[int]) -> torch.Tensor:
    spec, result = setup.sampling, logits.clone()
    seen = sorted({*setup.prompt_ids, *outputs})
    if spec.repetition_penalty != 1.0:
        ids = torch.tensor([seen])
        processor = RepetitionPenaltyLogitsProcessor(spec.repetition_penalty)
        result = processor(ids, result[None].clone())[0]
    for token, count in collections.Counter(outputs).items():
        result[token] -= spec.frequency_penalty * count + spec.presence_penalty
    return result


SPECS = [
    {"top_k": 1, "frequency_penalty": 0.7},
    {"top_k": 1, "presence_penalty": 1.1},
    {"top_k": 1, "repetition_penalty": 1.4},
    {"top_k": 1},
    {
        "top_k": 1,
        "frequency_penalty": 0.3,
        "presence_penalty": -0.5,
        "repetition_penalty": 0.8,
    },
    {"top_k": 1, "frequency_penalty": -0.2},
]


@pytest.mark.parametrize("retract_at", [None, 4])
def test_greedy_decoding_follows_the_formulas(retract_at):
    """Six rows decode 10 steps; with `retract_at` all of them move to other rows half way."""
    generator = torch.Generator().manual_seed(3)
    table = SamplingTable(max_rows=16, vocab_size=VOCAB, device="cpu")
    setups = [setup_of(i, [i, i + 1, i + 1], [], **spec) for i, spec in enumerate(SPECS)]
    for setup in setups:
        table.set_row(setup)
    outputs: list[list[int]] = [[] for _ in SPECS]
    sampler = Sampler()
    base = torch.randn(len(SPECS), VOCAB, generator=generator)
    for step in range(10):
        if step == retract_at:
            setups = [
                setup_of(15 - i, setup.prompt_ids, outputs[i], **SPECS[i])
                for i, setup in enumerate(setups)
            ]
            for setup in setups:
                table.set_row(setup)
        logits = base + 0.1 * torch.randn(base.shape, generator=generator)
        # Every other step in another order: positions in the batch are not rows.
        order = list(range(len(SPECS)))[:: 1 if step % 2 else -1]
        rows = [setups[i].row for i in order]
        batch = table.batch(rows, [work_of(row) for row in rows])
        ids = sampler(logits[order].clone(), batch).next_ids.tolist()
        for i, token in zip(order, ids, strict=True):
            expected = expected_logits(logits[i], setups[i], outputs[i])
            assert token == expected.argmax().item(), (step, i)
            outputs[i].append(token)
    assert len(set(outputs[1])) > 1  # the penalty did something


def test_only_rows_with_penalties_take_memory_and_slots_are_reused():
    table = PenaltyTable(VOCAB, "cpu")
    for row in range(8):
        table.set_row(setup_of(row, [1], []))
    assert table._counts.data.shape[0] == table._seen.data.shape[0] == 0
    for round_ in range(5):
        for row in range(3):
            table.set_row(setup_of(row, [1], [round_], frequency_penalty=1.0))
    assert table._counts.data.shape[0] == 4 and table._seen.data.shape[0] == 0
    counts = table._counts
    assert [counts.data[counts.slot(row)].sum().item() for row in range(3)] == [1, 1, 1]


def test_ids_outside_the_vocabulary_are_ignored():
    table = PenaltyTable(VOCAB, "cpu")
    setup = setup_of(0, [-5, VOCAB + 3, 2], [VOCAB], repetition_penalty=2.0, presence_penalty=1.0)
    table.set_row(setup)
    batch = table.batch([0], [setup.sampling])
    assert batch is not None
    logits = torch.ones(1, VOCAB)
    batch.apply(logits)
    expected = torch.ones(VOCAB)
    expected[2] = 0.5
    assert torch.equal(logits[0], expected)
