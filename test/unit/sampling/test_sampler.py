"""The sampler against plain formulas: filters, order of edits, greedy, logprobs, seeds, bad rows."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sglang.srt.layers import sampler as sampler_module
from sglang.srt.layers.sampler import SampleOutput, Sampler, seeded_noise, unpack_mask
from sglang.srt.managers.step_plan import RowSetup, RowWork, SamplingSpec, StepPlan
from sglang.srt.model_executor.worker import LaunchedStep
from sglang.srt.platforms import CpuPlatform
from sglang.srt.sampling.row_masks import RowMasks
from sglang.srt.sampling.sampling_batch import SamplingTable

VOCAB = 50


def setup_of(row: int, **spec) -> RowSetup:
    return RowSetup(row=row, sampling=SamplingSpec(**spec), prompt_ids=[1, 2], output_ids=[])


def work_of(row: int, **fields) -> RowWork:
    base = dict(
        start=0, num_tokens=1, token_ids=None, prefix_slots=None, new_slots=b"", sample=True
    )
    return RowWork(row=row, **{**base, **fields})


def make_table(specs: list[dict], vocab: int = VOCAB) -> SamplingTable:
    table = SamplingTable(max_rows=len(specs) + 2, vocab_size=vocab, device="cpu")
    for row, spec in enumerate(specs):
        table.set_row(setup_of(row, **spec))
    return table


def sample(
    logits: torch.Tensor, specs: list[dict], works: list[dict] | None = None, masks=None, **options
) -> SampleOutput:
    table = make_table(specs, logits.shape[1])
    rows = list(range(len(specs)))
    masks = masks and RowMasks(list(masks), np.stack(list(masks.values())))
    works = works or [{} for _ in rows]
    batch = table.batch(rows, [work_of(r, **w) for r, w in zip(rows, works, strict=True)], masks)
    return Sampler(seed=7, **options)(logits.clone(), batch)


def histogram(logits: torch.Tensor, num_draws: int = 20000, **spec) -> torch.Tensor:
    """Frequencies [V] of many unseeded draws from one distribution."""
    table = SamplingTable(max_rows=num_draws, vocab_size=logits.numel(), device="cpu")
    rows = list(range(num_draws))
    for row in rows:
        table.set_row(setup_of(row, **spec))
    batch = table.batch(rows, [work_of(row) for row in rows])
    ids = Sampler(seed=1)(logits.repeat(num_draws, 1), batch).next_ids
    return torch.bincount(ids, minlength=logits.numel()) / num_draws


LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def test_draws_follow_the_softmax():
    expected = torch.softmax(LOGITS / 0.7, dim=-1)
    assert torch.allclose(histogram(LOGITS, temperature=0.7), expected, atol=0.015)


def test_top_k_keeps_the_best_renormalised():
    expected = torch.softmax(LOGITS, dim=-1) * torch.tensor([1.0, 1, 1, 0, 0, 0])
    assert torch.allclose(histogram(LOGITS, top_k=3), expected / expected.sum(), atol=0.015)


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    probs = torch.softmax(LOGITS, dim=-1)
    assert probs[0] < 0.7 < probs[:2].sum()
    expected = probs * torch.tensor([1.0, 1, 0, 0, 0, 0])
    assert torch.allclose(histogram(LOGITS, top_p=0.7), expected / expected.sum(), atol=0.015)


def test_min_p_is_relative_to_the_best():
    probs = torch.softmax(LOGITS, dim=-1)
    kept = (probs >= 0.2 * probs[0]).float()
    assert kept.sum() == 3
    expected = probs * kept
    assert torch.allclose(histogram(LOGITS, min_p=0.2), expected / expected.sum(), atol=0.015)


def test_filters_combine_and_the_best_token_always_stays():
    got = histogram(LOGITS, num_draws=2000, top_k=4, top_p=1e-6, min_p=1.0)
    assert got[0] == 1.0


def test_top_k_beyond_the_partial_selection_sorts_everything():
    logits = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0))
    limits = logits.sort(dim=-1, descending=True).values
    for _ in range(5):
        ids = sample(logits, [{"top_k": 2000, "temperature": 50.0}, {"top_k": 1500}]).next_ids
        assert logits[0, ids[0]] >= limits[0, 1999] and logits[1, ids[1]] >= limits[1, 1499]


@pytest.mark.parametrize("filters", [{}, {"min_p": 0.2}], ids=str)
def test_a_large_vocabulary_is_drawn_from_without_a_sort(monkeypatch, filters):
    """With a seed the draws do not depend on the way; without, they follow the same distribution."""
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(3)).repeat(200, 1)
    specs = [{"seed": seed, **filters} for seed in range(200)]
    sorted_draws = sample(logits, specs).next_ids
    monkeypatch.setattr(sampler_module, "_MAX_PARTIAL_TOP_K", 8)
    monkeypatch.delattr(Sampler, "_draw_from_sorted")
    assert torch.equal(sample(logits, specs).next_ids, sorted_draws)
    mixed = [{**filters} if seed % 2 else spec for seed, spec in enumerate(specs)]
    assert torch.equal(sample(logits, mixed).next_ids[::2], sorted_draws[::2])
    probs = torch.softmax(LOGITS, dim=-1)
    expected = probs * (probs >= filters.get("min_p", 0.0) * probs[0])
    monkeypatch.setattr(sampler_module, "_MAX_PARTIAL_TOP_K", 2)
    got = histogram(LOGITS, **filters)
    assert torch.allclose(got, expected / expected.sum(), atol=0.015)


def test_columns_are_kept_while_the_same_rows_decode():
    table = make_table([{"temperature": 0.5}] * 2)
    works = [work_of(0), work_of(1)]
    columns = table.batch([0, 1], works).columns
    assert table.batch([0, 1], works).columns is columns
    assert table.batch([1, 0], works[::-1]).columns is not columns
    columns = table.batch([0, 1], works).columns
    table.set_row(setup_of(1, temperature=0.25))
    renewed = table.batch([0, 1], works).columns
    assert renewed is not columns and renewed.temperature.flatten().tolist() == [0.5, 0.25]


def test_a_greedy_batch_takes_the_argmax_and_selects_no_columns():
    logits = torch.randn(4, VOCAB)
    table = make_table([{"top_k": 1}] * 4)
    batch = table.batch([0, 1, 2, 3], [work_of(r) for r in range(4)])
    columns = batch.columns
    assert columns.all_greedy and columns.penalties is None and columns.bias is None
    assert columns.temperature is None and columns.top_k is None and batch.forbidden is None
    out = Sampler()(logits.clone(), batch)
    assert torch.equal(out.next_ids, logits.argmax(-1)) and not out.bad.any()


def test_greedy_rows_in_a_mixed_batch_take_the_argmax():
    logits = torch.randn(6, VOCAB)
    specs = [{"top_k": 1}, {"temperature": 30.0}] * 3
    for _ in range(20):
        ids = sample(logits, specs).next_ids
        assert torch.equal(ids[::2], logits.argmax(-1)[::2])


def test_rows_are_selected_not_counted():
    """A batch over rows 2 and 0 uses their parameters in that order."""
    table = make_table([{"top_k": 1}, {"temperature": 9.0}, {"temperature": 9.0, "top_k": 2}])
    logits = torch.arange(VOCAB, dtype=torch.float32).repeat(2, 1)
    seen = set()
    for seed in range(60):
        batch = table.batch([2, 0], [work_of(2), work_of(0)])
        ids = Sampler(seed=seed)(logits.clone(), batch).next_ids.tolist()
        assert ids[1] == VOCAB - 1
        seen.add(ids[0])
    assert seen == {VOCAB - 1, VOCAB - 2}


def test_a_row_that_is_set_up_again_forgets_its_former_request():
    table = make_table([{"logit_bias": {3: 100.0}, "repetition_penalty": 2.0}])
    logits = torch.zeros(1, VOCAB)
    logits[0, 9] = 1.0

    def run() -> int:
        return Sampler()(logits.clone(), table.batch([0], [work_of(0)])).next_ids.item()

    assert run() == 3
    table.set_row(setup_of(0, top_k=1))
    assert run() == 9


def test_logit_bias_adds():
    logits = torch.zeros(2, VOCAB)
    logits[:, 4] = 1.0
    out = sample(logits, [{"top_k": 1, "logit_bias": {7: 1.5, 4: -0.2}}, {"top_k": 1}])
    assert out.next_ids.tolist() == [7, 4]


@pytest.mark.parametrize("num_outputs, expected", [(0, 8), (2, 8), (3, 5)])
def test_stop_ids_are_masked_until_min_new_tokens(num_outputs, expected):
    logits = torch.zeros(1, VOCAB)
    logits[0, 5], logits[0, 8] = 3.0, 2.0
    spec = {"top_k": 1, "min_new_tokens": 3, "stop_ids": [5, VOCAB + 10]}
    assert sample(logits, [spec], [{"num_outputs": num_outputs}]).next_ids.item() == expected


def pack(allowed: list[int], vocab: int = VOCAB) -> np.ndarray:
    mask = np.zeros((vocab + 31) // 32, dtype=np.uint32)
    for token in allowed:
        mask[token // 32] |= np.uint32(1 << (token % 32))
    return mask.view(np.int32)


def test_unpack_mask_reads_every_bit_and_pads():
    allowed = [0, 31, 32, 49]
    packed = torch.from_numpy(np.frombuffer(pack(allowed), dtype="<i4").copy())[None]
    assert unpack_mask(packed, VOCAB).nonzero()[:, 1].tolist() == allowed
    assert unpack_mask(packed, 100).nonzero()[:, 1].tolist() == allowed


@pytest.mark.parametrize("spec", [{"top_k": 1}, {}, {"top_p": 0.9}, {"seed": 3}, {"top_k": 5}])
def test_a_grammar_mask_binds_only_its_row(spec):
    logits = torch.randn(3, VOCAB)
    logits[:, 40] = 20.0
    for _ in range(10):
        ids = sample(logits, [spec] * 3, masks={1: pack([31, 33])}).next_ids.tolist()
        assert ids[0] == ids[2] == 40 and ids[1] in (31, 33)


def test_a_complete_grammar_wins_over_min_new_tokens():
    spec = {"top_k": 1, "min_new_tokens": 5, "stop_ids": [6]}
    out = sample(torch.zeros(1, VOCAB), [spec], masks={0: pack([6])})
    assert out.next_ids.item() == 6 and not out.bad.any()


@pytest.mark.parametrize("spec", [{"top_k": 1}, {}, {"top_p": 0.5}, {"top_k": 3}, {"seed": 1}])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_that_are_not_finite_are_reported_and_hurt_nobody(spec, value):
    logits = torch.zeros(3, VOCAB)
    logits[:, 11] = 50.0
    logits[1, 20] = value
    out = sample(logits, [spec] * 3)
    assert out.bad.tolist() == [False, True, False]
    assert out.next_ids[0] == out.next_ids[2] == 11
    assert 0 <= out.next_ids[1] < VOCAB


def test_a_row_with_nothing_allowed_is_reported():
    out = sample(torch.zeros(2, VOCAB), [{}, {}], masks={0: pack([])})
    assert out.bad.tolist() == [True, False]


# --- seeds


def test_a_seeded_row_draws_the_same_whatever_shares_its_batch():
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(1, VOCAB, generator=generator)
    others = torch.randn(3, VOCAB, generator=generator)
    spec = {"seed": 1234, "temperature": 2.0}
    work = {"num_outputs": 17}
    alone = sample(logits, [spec], [work]).next_ids[0]
    neighbours: list[list[dict]] = [
        [{}, {"seed": 5}, {"top_p": 0.5}],
        [{"top_k": 1}, {"top_k": 4}, {"min_p": 0.3}],
        [{"repetition_penalty": 1.5}] * 3,
    ]
    for specs in neighbours:
        for place in range(4):
            batch = torch.cat([others[:place], logits, others[place:]])
            all_specs = specs[:place] + [spec] + specs[place:]
            works = [{} for _ in range(4)]
            works[place] = work
            assert sample(batch, all_specs, works).next_ids[place] == alone


@pytest.mark.parametrize("filters", [{"top_k": 8}, {"top_p": 0.8}, {"top_k": 8, "top_p": 0.9}])
def test_seeded_filtered_rows_do_not_depend_on_how_others_are_filtered(filters):
    """Other rows decide whether the whole vocabulary is sorted."""
    generator = torch.Generator().manual_seed(6)
    for position in range(30):
        logits = torch.randn(2, VOCAB, generator=generator)
        works = [{"num_outputs": position}, {}]
        spec = {"seed": 99, **filters}
        results = {
            sample(logits, [spec, other], works).next_ids[0].item()
            for other in ({"top_k": 1}, {"top_p": 0.5}, {"top_k": 40}, {})
        }
        assert len(results) == 1


def test_seeded_draws_follow_the_softmax():
    num_draws = 20000
    ids = torch.arange(LOGITS.numel())[None]
    seeds = torch.full((num_draws,), -(2**63) + 5)
    noise = seeded_noise(seeds, torch.arange(num_draws), ids)
    draws = (torch.softmax(LOGITS, -1) / noise).argmax(-1)
    got = torch.bincount(draws, minlength=LOGITS.numel()) / num_draws
    assert torch.allclose(got, torch.softmax(LOGITS, -1), atol=0.015)


@pytest.mark.parametrize("axis", ["token", "position", "seed", "high_seed"])
def test_seeded_noise_is_uniform_and_uncorrelated_along(axis):
    n = 1 << 16
    count = torch.arange(n)
    zero = torch.zeros(n, dtype=torch.int64)
    if axis == "token":
        noise = seeded_noise(torch.tensor([42]), torch.tensor([3]), count[None])[0]
    else:
        seeds = {"position": zero + 42, "seed": count, "high_seed": count << 32}[axis]
        positions = count if axis == "position" else zero
        noise = seeded_noise(seeds, positions, torch.tensor([[17]]))[:, 0]
    uniform = 1 - torch.exp(-noise.double())
    counts = torch.histc(uniform.float(), bins=256, min=0.0, max=1.0)
    chi_square = ((counts - n / 256) ** 2 / (n / 256)).sum().item()
    # 255 degrees of freedom: mean 255, standard deviation 22.6.
    assert 255 - 5 * 22.6 < chi_square < 255 + 5 * 22.6
    centred = uniform - uniform.mean()
    for lag in (1, 2, 7, 256):
        correlation = (centred[lag:] * centred[:-lag]).mean() / centred.var()
        assert abs(correlation) < 5 / math.sqrt(n)


def test_seeded_noise_is_positive_and_finite_for_every_token():
    noise = seeded_noise(torch.arange(64), torch.arange(64), torch.arange(20000)[None])
    assert (noise > 0).all() and torch.isfinite(noise).all()


def test_unseeded_draws_repeat_with_the_servers_seed_only():
    logits = torch.zeros(8, 1000)
    table = make_table([{}] * 8, 1000)
    rows = list(range(8))

    def draws(seed: int) -> list[list[int]]:
        sampler = Sampler(seed=seed)
        works = [work_of(r) for r in rows]
        return [
            sampler(logits.clone(), table.batch(rows, works)).next_ids.tolist() for _ in range(3)
        ]

    first = draws(1)
    assert first == draws(1) and first != draws(2) and first[0] != first[1]


# --- logprobs


def logprobs_of(specs, works, logits, **kwargs):
    out = sample(logits, specs, works, **kwargs)
    assert out.logprobs is not None
    return out.next_ids.tolist(), out.logprobs.download(CpuPlatform())()


def test_logprobs_are_of_the_tempered_distribution_before_the_filters():
    logits = torch.randn(3, VOCAB)
    specs = [{"top_k": 1}, {"temperature": 0.5, "top_k": 2}, {"top_p": 0.3}]
    works = [
        {},
        {"return_logprob": True, "top_logprobs": 4, "token_ids_logprob": [3, 1]},
        {"return_logprob": True, "top_logprobs": 2},
    ]
    ids, rows = logprobs_of(specs, works, logits)
    assert set(rows) == {1, 2}
    for line, temperature in ((1, 0.5), (2, 1.0)):
        expected = torch.log_softmax(logits[line] / temperature, dim=-1)
        assert rows[line].output == pytest.approx(expected[ids[line]].item(), abs=1e-5)
        values, top_ids = rows[line].output_top
        assert top_ids == expected.topk(len(values)).indices.tolist()
        assert values == pytest.approx(expected[top_ids].tolist(), abs=1e-5)
    assert len(rows[1].output_top[0]) == 4 and len(rows[2].output_top[0]) == 2
    expected = torch.log_softmax(logits[1] / 0.5, dim=-1)[[3, 1]].tolist()
    assert rows[1].output_ids == pytest.approx(expected, abs=1e-5)
    assert rows[2].output_ids is None


def test_greedy_logprobs_honour_temperature_and_equal_the_top_entry():
    logits = torch.randn(2, VOCAB)
    work = {"return_logprob": True, "top_logprobs": 1}
    ids, rows = logprobs_of([{"top_k": 1}, {"top_k": 1, "temperature": 0.3}], [work] * 2, logits)
    for line, temperature in ((0, 1.0), (1, 0.3)):
        expected = torch.log_softmax(logits[line] / temperature, dim=-1).max().item()
        assert rows[line].output == pytest.approx(expected, abs=1e-5)
        assert rows[line].output_top == ([rows[line].output], [ids[line]])


def test_original_logprobs_are_pre_temperature():
    logits = torch.randn(1, VOCAB)
    work = {"return_logprob": True}
    ids, rows = logprobs_of([{"temperature": 0.3}], [work], logits, return_original_logprob=True)
    expected = torch.log_softmax(logits[0], dim=-1)[ids[0]].item()
    assert rows[0].output == pytest.approx(expected, abs=1e-5)


def test_logprobs_include_bias_and_grammar():
    logits = torch.zeros(1, VOCAB)
    spec = {"top_k": 1, "logit_bias": {5: 1.0}}
    work = {"return_logprob": True, "token_ids_logprob": [5, 6, 7]}
    _, rows = logprobs_of([spec], [work], logits, masks={0: pack([5, 6])})
    norm = math.log(math.e + 1)
    assert rows[0].output_ids == pytest.approx([1 - norm, -norm, -math.inf])


def test_nan_is_found_before_a_mask_hides_it_and_only_when_asked_for():
    logits = torch.randn(3, VOCAB)
    logits[1, 40] = torch.nan
    logits[2, 3] = torch.inf  # not a NaN
    allowed = np.zeros(-(-VOCAB // 32), np.int32)
    allowed[0] = 0b110
    masks = {1: allowed}
    specs = [dict(top_k=1)] * 3
    out = sample(logits, specs, masks=masks, check_nan=True)
    assert out.nan.tolist() == [False, True, False]
    assert out.bad.tolist() == [False, False, True]
    plain = sample(logits, specs, masks=masks)
    assert plain.nan is None
    assert torch.equal(plain.next_ids, out.next_ids)


@pytest.mark.parametrize(("nan", "expected"), [(None, []), (torch.tensor([True, False]), [2])])
def test_flags_come_down_with_the_ids(nan, expected):
    """Rows 0 and 2 of the step are sampled; the flags are about the works, not the lines."""
    works = [work_of(0), work_of(1, sample=False), work_of(2)]
    plan = StepPlan(step_id=1, mode="extend", works=works)
    columns = [torch.tensor([5, 6]), torch.tensor([False, True])]
    columns += [] if nan is None else [nan.flip(0)]
    step = LaunchedStep(plan, [0, 2], None, read_ids=lambda: tuple(columns))
    result = step.result()
    assert result.next_ids == [5, -1, 6]
    assert result.bad_rows == [2] and result.nan_rows == expected


@pytest.mark.parametrize(
    ("spec", "vocab", "is_cuda", "suits"),
    [
        ({"top_k": 1}, 50, True, True),
        ({}, 50, True, True),
        ({"top_p": 0.9}, 50, True, False),
        ({"seed": 3}, 50, True, False),
        ({"top_p": 0.9}, 2000, True, True),
        ({"top_k": 5, "min_p": 0.1, "seed": 3}, 2000, True, True),
        ({"top_p": 0.9}, 2000, False, False),
    ],
)
def test_kernels_choose_on_a_gpu_but_from_small_vocabularies(
    monkeypatch, spec, vocab, is_cuda, suits
):
    monkeypatch.setattr("sglang.srt.layers.sampler.has_triton", lambda: True)
    batch = make_table([spec], vocab).batch([0], [work_of(0)])
    logits = SimpleNamespace(is_cuda=is_cuda, shape=(1, vocab))
    assert Sampler()._suits_kernel(logits, batch) == suits
