"""Draws without a sort against the plain sampler, which sorts; run by `test_triton_layers.py` in Triton's interpreter, and by
`test/gpu/test_choose_kept_gpu.py` on a GPU.

Rows have seeds, so that both draw with the same noise. Over many seeds each token at the border of what is kept wins somewhere.
"""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sglang.srt.layers.sampler import Sampler, kept_draw, seeded_noise
from sglang.srt.layers.triton_ops import choose_kept as module
from sglang.srt.layers.triton_ops.choose_kept import KeptDraw, choose_kept
from sglang.srt.layers.triton_ops.noise import gumbel, noise_keys
from sglang.srt.managers.step_plan import RowSetup, RowWork, SamplingSpec
from sglang.srt.sampling.sampling_batch import SamplingBatch, SamplingTable

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
FILTERS = [
    {},
    {"top_k": 1},
    {"top_k": 2},
    {"top_k": 20},
    {"top_k": 10**6},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"top_p": 1e-6},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 9, "top_p": 0.8, "min_p": 0.02},
    {"top_k": 40, "top_p": 0.99, "min_p": 0.3},
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch, request):
    if IS_INTERPRETED and request.function is not test_large_vocabularies:
        monkeypatch.setattr(module, "_BLOCK", 64)
        monkeypatch.setattr(module, "_BLOCKS_A_STEP", 2)


def batch_of(specs: list[dict], vocab: int, device: str, **asked) -> SamplingBatch:
    table = SamplingTable(len(specs), vocab, device)
    for row, spec in enumerate(specs):
        spec = SamplingSpec(**spec)
        table.set_row(RowSetup(row=row, sampling=spec, prompt_ids=[1, 2], output_ids=[5]))
    works = [
        RowWork(
            row=row,
            start=0,
            num_tokens=1,
            token_ids=None,
            prefix_slots=None,
            new_slots=b"",
            sample=True,
            num_outputs=row,
            **asked,
        )
        for row in range(len(specs))
    ]
    return table.batch(range(len(specs)), works)


def draw_of(specs: list[dict], vocab: int) -> KeptDraw:
    return kept_draw(batch_of(specs, vocab, DEVICE), seed=5)


def check_rows(logits: torch.Tensor, specs: list[dict]) -> None:
    """The ids of the plain sampler on a CPU. A row for which it sorts everything is added: partly sorted, ties have no order."""
    logits = torch.cat([logits, torch.zeros(1, logits.shape[1])])
    specs = [*specs, {"top_p": 0.999, "seed": 1}]
    plain = Sampler()(logits.clone(), batch_of(specs, logits.shape[1], "cpu"))
    ids, bad = choose_kept(logits.to(DEVICE), draw_of(specs, logits.shape[1]))
    assert bad.tolist() == plain.bad.tolist()
    right = (ids.cpu() == plain.next_ids) | plain.bad
    wrong = (~right).nonzero().flatten().tolist()
    assert not wrong, [(specs[i], int(ids[i]), int(plain.next_ids[i])) for i in wrong]


def seeded(filters: list[dict], **options) -> list[dict]:
    return [spec | {"seed": 77 * i - 500} | options for i, spec in enumerate(filters)]


@pytest.mark.parametrize("spread", [0.3, 3.0])
@pytest.mark.parametrize("vocab", [1, 64, 300])
def test_draws_of_every_filter(vocab, spread):
    torch.manual_seed(vocab)
    specs = seeded(FILTERS * (1 if IS_INTERPRETED else 40), temperature=0.8)
    check_rows(torch.randn(len(specs), vocab) * spread, specs)


@pytest.mark.parametrize("filters", FILTERS)
def test_ties_are_kept_by_index(filters):
    """Few values, whose sums are exact: the border lies within equal logits."""
    torch.manual_seed(1)
    levels = torch.tensor([0.0, -1.0, -2.0]) * torch.log(torch.tensor(2.0))
    specs = seeded([filters] * 4)
    check_rows(levels[torch.randint(0, 3, (len(specs), 130))], specs)
    check_rows(torch.zeros(len(specs), 128), specs)


def test_of_equal_tokens_the_first_is_all_that_the_least_top_p_keeps():
    """Nothing is before it, so that nothing can have used the top-p up, be it zero; blocks without candidates are not read."""
    logits = torch.full((12, 300), -5.0, device=DEVICE)
    logits[:, 150:160] = 3.0
    draw = draw_of(seeded([{"top_p": 1e-50}] * len(logits)), 300)
    torch.use_deterministic_algorithms(True)  # new tensors are filled with what is no token
    try:
        ids, bad = choose_kept(logits, draw)
    finally:
        torch.use_deterministic_algorithms(False)
    assert ids.tolist() == [150] * len(logits) and not bad.any()


def test_half_of_equal_tokens_is_exactly_half():
    specs = seeded([{"top_p": 0.5}] * (40 if IS_INTERPRETED else 4000))
    ids, _ = choose_kept(torch.zeros(len(specs), 16, device=DEVICE), draw_of(specs, 16))
    assert set(ids.tolist()) == set(range(8))


@settings(
    max_examples=8 if IS_INTERPRETED else 200,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # making a case smaller takes long
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_rows(data):
    vocab = data.draw(st.integers(1, 200))
    number = st.sampled_from([-float("inf"), -30.0, -2.0, -1.0, 0.0, 0.5, 3.0])
    any_filter = st.fixed_dictionaries(
        {
            "top_k": st.sampled_from([-1, 1, 2, 3, 10, 150, 500]),
            "top_p": st.sampled_from([1.0, 0.9, 0.31, 0.01]),
            "min_p": st.sampled_from([0.0, 0.003, 0.4, 1.0]),
            "temperature": st.sampled_from([1.0, 0.6, 1.7]),
            "seed": st.integers(-(2**63), 2**63 - 1),
        }
    )
    specs = data.draw(st.lists(any_filter, min_size=1, max_size=5))
    count = len(specs)
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    logits = torch.randn(count, vocab)
    for row in range(count):
        kind = data.draw(st.integers(0, 3))
        if kind == 0:
            values = data.draw(st.lists(number, min_size=1, max_size=6))
            logits[row] = torch.tensor(values)[torch.randint(0, len(values), (vocab,))]
        if kind == 1:
            logits[row, torch.rand(vocab) < 0.9] = -torch.inf
    check_rows(logits, specs)


def test_bad_rows_end_and_have_a_valid_id():
    logits = torch.randn(5, 150, device=DEVICE)
    logits[0, 120] = float("nan")
    logits[1] = float("-inf")
    logits[2, 7] = float("inf")
    logits[3, :149] = float("-inf")
    for filters in ({"top_k": 3, "top_p": 0.5}, {"min_p": 0.2}, {}):
        draw = draw_of(seeded([filters] * 5, temperature=0.5), 150)
        ids, bad = choose_kept(logits, draw)
        assert bad.tolist() == [True, True, True, False, False]
        assert ((ids >= 0) & (ids < 150)).all() and ids[3] == 149
        assert torch.equal(ids, choose_kept(logits, draw)[0])


def test_unseeded_rows_follow_the_distribution_and_the_seed_of_the_step():
    count = 60 if IS_INTERPRETED else 40000
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().repeat(count, 1).to(DEVICE)
    draw = draw_of([{"top_k": 3}] * count, 4)
    ids, bad = choose_kept(logits, draw)
    found = (torch.bincount(ids, minlength=4) / count).cpu()
    want = torch.tensor([0.4, 0.3, 0.2, 0.0]) / 0.9
    assert (found - want).abs().max() < 5 * (0.25 / count) ** 0.5 and found[3] == 0
    assert not bad.any()
    assert torch.equal(ids[:9], choose_kept(logits[:9], draw)[0])
    other = choose_kept(logits[:9], dataclasses.replace(draw, seed=6))[0]
    assert (ids[:9] != other).any()


def test_rows_with_and_without_a_seed():
    """What a row with a seed draws does not depend on the others; greedy rows take the best."""
    torch.manual_seed(2)
    logits = torch.randn(6, 200).to(DEVICE)
    filters = [{"top_p": 0.9}, {}, {"top_k": 1}, {"min_p": 0.05}, {"top_k": 30}, {}]
    specs = [spec | ({"seed": 9} if i % 2 else {}) for i, spec in enumerate(filters)]
    ids, _ = choose_kept(logits, draw_of(specs, 200))
    all_seeded, _ = choose_kept(logits, draw_of([spec | {"seed": 9} for spec in filters], 200))
    assert torch.equal(ids[1::2], all_seeded[1::2]) and ids[2] == logits[2].argmax()


@triton.jit
def noise_kernel(out, seeds, positions, COUNT: tl.constexpr):
    row = tl.program_id(0)
    key_a, key_b = noise_keys(tl.load(seeds + row), tl.load(positions + row))
    token = tl.arange(0, COUNT)
    tl.store(out + row * COUNT + token, gumbel(token, key_a, key_b))


def test_noise_is_that_of_the_plain_sampler():
    count = 8192
    seeds = torch.tensor([0, 1, -1, 2**62 + 3, -(2**63)])
    positions = torch.tensor([0, 1, 7, 2**31, 100_000])
    out = torch.empty(5, count, device=DEVICE)
    noise_kernel[(5,)](out, seeds.to(DEVICE), positions.to(DEVICE), COUNT=count)
    want = -seeded_noise(seeds, positions, torch.arange(count)[None]).log()
    torch.testing.assert_close(out.cpu(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("vocab", [1200] if IS_INTERPRETED else [128_256, 151_936, 151_937])
def test_large_vocabularies(vocab):
    """Of the draws whose winners are in a dead heat, or at the border of top-p, some may differ."""
    torch.manual_seed(vocab)
    specs = seeded(FILTERS * (1 if IS_INTERPRETED else 8), temperature=0.7)
    spreads = torch.tensor([0.5, 1.5, 4.0]).repeat(len(specs) // 3)
    logits = torch.randn(len(specs), vocab) * spreads[:, None]
    logits[::2] = logits[::2].bfloat16().float()  # many ties, as a model's are
    plain = Sampler()(logits.clone(), batch_of(specs, vocab, "cpu"))
    ids, bad = choose_kept(logits.to(DEVICE), draw_of(specs, vocab))
    assert (ids.cpu() != plain.next_ids).sum() <= 1 and not bad.any()


def test_no_rows():
    draw = draw_of([{"top_k": 3}], 9)
    ids, bad = choose_kept(torch.zeros(0, 9, device=DEVICE), draw)
    assert ids.shape == bad.shape == (0,)


@pytest.mark.parametrize("asked", [{}, {"return_logprob": True, "top_logprobs": 2}])
def test_the_sampler_edits_first_and_adds_logprobs(monkeypatch, asked):
    """Penalties, biases and logprobs are the same beside either way of drawing."""
    torch.manual_seed(4)
    logits = torch.randn(4, 100) * 2
    edits = {"repetition_penalty": 1.5, "logit_bias": {3: 2.0, 50: 4.0}, "temperature": 0.7}
    specs = seeded([{"top_p": 0.7}, {"top_k": 5}, {"top_k": 1}, {"min_p": 0.2}])
    specs = [spec | edits for spec in specs]
    want = Sampler()(logits.clone(), batch_of(specs, 100, "cpu", **asked))
    monkeypatch.setattr(Sampler, "_suits_kernel", lambda self, logits, batch: True)
    got = Sampler()(logits.to(DEVICE), batch_of(specs, 100, DEVICE, **asked))
    assert torch.equal(got.next_ids.cpu(), want.next_ids) and not got.bad.any()
    assert (got.logprobs is None) == (want.logprobs is None) == (not asked)
    if asked:
        torch.testing.assert_close(got.logprobs.chosen.cpu(), want.logprobs.chosen)
        assert torch.equal(got.logprobs.top_ids.cpu(), want.logprobs.top_ids)
