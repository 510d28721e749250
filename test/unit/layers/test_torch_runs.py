"""Attention over runs of slots against softmax written out, for every way a step falls into pieces."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sglang.srt.layers.attention.torch_runs import PoolHeads, RowSpan, StepRuns, split_runs

KV_HEADS, DIM, NUM_SLOTS = 2, 8, 2048
SCALE = DIM**-0.5


def _naive(q, k, v, num_new):
    """q [n, H, d] over k, v [m, K, d], the last n of which are the queries' own."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1).double() for x in (k, v))
    scores = torch.einsum("nhd,mhd->hnm", q.double(), k) * SCALE
    rows, keys = torch.arange(num_new)[:, None], torch.arange(len(k))[None]
    scores.masked_fill_(keys > rows + len(k) - num_new, float("-inf"))
    return torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v).flatten(1)


def _run_step(slots_of, new_lens, heads=4):
    """The step's runs, and its output beside the expected one."""
    torch.manual_seed(0)
    k, v = (torch.randn(NUM_SLOTS, KV_HEADS, DIM) for _ in range(2))
    q = torch.randn(sum(new_lens), heads, DIM)
    spans, row, want, fresh = [], 0, [], []
    for slots, num_new in zip(slots_of, new_lens, strict=True):
        slots = np.asarray(slots, dtype=np.int32)
        spans.append(RowSpan(row, num_new, slots))
        own = torch.from_numpy(slots).long()
        want.append(_naive(q[row : row + num_new], k[own], v[own], num_new))
        fresh.append(own[-num_new:])
        row += num_new
    new = torch.cat(fresh)
    runs = StepRuns(spans)
    got = runs.attend(q, (k[new], v[new]), PoolHeads(k, v, heads), SCALE)
    torch.testing.assert_close(got.double(), torch.cat(want), rtol=1e-5, atol=1e-5)
    return runs


def _range(start, count):
    return list(range(start, start + count))


@pytest.mark.parametrize("heads", [2, 4, 8, 16])
def test_decode_of_separate_runs_is_one_round(heads):
    runs = _run_step([_range(1, 40), _range(100, 7), _range(300, 1)], [1, 1, 1], heads)
    assert not runs.rounds and len(runs.last) == 3


def test_requests_of_several_runs():
    slots = [_range(1, 10) + _range(50, 5) + _range(20, 3), _range(200, 4), _range(9, 2) + [400]]
    runs = _run_step(slots, [1, 1, 1])
    assert len(runs.rounds) == 2


def test_many_short_runs_are_gathered():
    scattered = list(range(3, 103, 2))
    (gathered,) = split_runs(np.array(scattered, dtype=np.int32))
    assert isinstance(gathered, torch.Tensor)
    _run_step([scattered, _range(500, 9)], [1, 1])


def test_a_shared_prefix_is_read_once():
    prefix = _range(1, 300)
    slots = [prefix + _range(400 + 20 * i, 5 + i) for i in range(4)]
    runs = _run_step([*slots, _range(900, 12)], [1] * 5)
    shared = runs.rounds[0].pieces
    assert [(piece.rows, piece.slots) for piece in shared] == [(slice(0, 4), slice(1, 301))]


def test_sharers_need_not_be_neighbours_and_may_end_within_the_prefix():
    prefix = _range(1, 300)
    slots = [prefix + [700], _range(900, 12), prefix[:290], prefix + _range(800, 30)]
    runs = _run_step(slots, [1, 1, 1, 1])
    assert runs.rounds
    assert runs.rounds[0].pieces[0].rows.tolist() == [0, 2, 3]


@pytest.mark.parametrize("new_lens", [[5, 3, 9], [1, 70, 1], [80, 1, 2]])
def test_extend_behind_shared_and_own_prefixes(new_lens):
    prefix = _range(1, 300)
    slots = [
        prefix + _range(400, new_lens[0]),
        prefix + _range(600, 10) + _range(700, new_lens[1]),
        _range(1000, 20) + _range(1100, new_lens[2]),
    ]
    _run_step(slots, new_lens)


def test_whole_prompts():
    runs = _run_step([_range(1, 33), _range(100, 65)], [33, 65])
    assert not runs.rounds and all(piece.slots is None for piece in runs.last)


@pytest.mark.parametrize("seed", range(20))
def test_random_steps(seed):
    rng = np.random.default_rng(seed)
    free = rng.permutation(np.arange(1, NUM_SLOTS // 16)) * 16  # runs start at multiples of 16
    prefix = [slot for start in free[:20] for slot in _range(int(start), 16)]
    slots_of, new_lens, used = [], [], 20
    for _ in range(int(rng.integers(1, 6))):
        slots = prefix[: int(rng.integers(0, len(prefix)))] if rng.random() < 0.6 else []
        num_blocks = int(rng.integers(1, 4))
        for start in free[used : used + num_blocks]:
            slots = slots + _range(int(start), int(rng.integers(1, 17)))
        used += num_blocks
        slots_of.append(slots)
        new_lens.append(1 if rng.random() < 0.5 else int(rng.integers(1, len(slots) + 1)))
    _run_step(slots_of, new_lens)
