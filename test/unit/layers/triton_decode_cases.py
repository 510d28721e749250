"""Splits of decode attention, combined by their last program and by a second kernel; run by `test_triton_attention.py` in Triton's
interpreter (TRITON_INTERPRET=1), and by `test/gpu/test_layers_gpu.py` on a GPU.
"""

from __future__ import annotations

import os

import pytest
import torch

from sglang.srt.layers.attention.triton_ops import decode_splits
from sglang.srt.layers.attention.triton_ops.decode import (
    DecodeOptions,
    decode_attention,
)

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
SPLIT_LEN, NUM_SPLITS = 4, 20
# No key, one split, some, a whole team, one more, all.
LENS = (0, 3, 4, 9, 32, 33, 80)


@pytest.fixture(autouse=True)
def on_the_device():
    torch.manual_seed(0)
    with torch.device(DEVICE), torch.inference_mode():
        yield


def attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, options: DecodeOptions
) -> torch.Tensor:
    """One request, plainly: q [H, d], keys [n, K, d], values [n, K, d_v], in order."""
    group = len(q) // keys.shape[1]
    keys, values = (x.double().repeat_interleave(group, 1) for x in (keys, values))
    scores = torch.einsum("hd,nhd->hn", q.double(), keys) * options.scale
    if options.window > 0:
        scores[:, : max(0, len(keys) - 1 - options.window)] = -torch.inf
    if options.sinks is not None:
        scores = torch.cat([scores, options.sinks.double()[:, None]], 1)
        values = torch.cat([values, values.new_zeros(1, *values.shape[1:])])
    shares = scores.softmax(-1) if scores.numel() else scores
    return torch.einsum("hn,nhd->hd", shares, values).to(q.dtype)


@pytest.mark.parametrize(
    "is_together, heads, window, has_sinks",
    [
        (True, (4, 2), -1, False),
        (True, (5, 1), -1, True),
        (True, (2, 2), 40, True),
        (False, (5, 1), 40, True),
    ],
)
def test_splits_are_combined(monkeypatch, is_together, heads, window, has_sinks):
    """Twice the same, so that counters that were not set back would show."""
    if not is_together:
        monkeypatch.setattr(decode_splits, "_MOST_COMBINED", 0)
    (num_heads, num_kv), dim, v_dim, num_slots = heads, 32, 24, 700
    dtype = torch.float32 if IS_INTERPRETED else torch.bfloat16
    q = torch.randn(len(LENS), num_heads, dim).to(dtype)
    keys = torch.randn(num_slots, num_kv, dim).to(dtype)
    values = torch.randn(num_slots, num_kv, v_dim).to(dtype)
    table = torch.stack([torch.randperm(num_slots)[:90] for _ in range(len(LENS) + 1)]).int()
    rows = 1 + torch.arange(len(LENS))
    sinks = torch.randn(num_heads) if has_sinks else None
    options = DecodeOptions(dim**-0.5, window=window, sinks=sinks)

    def run() -> torch.Tensor:
        return decode_attention(
            q,
            keys,
            values,
            table,
            rows,
            torch.tensor(LENS),
            None,
            NUM_SPLITS,
            torch.tensor([SPLIT_LEN], dtype=torch.int32),
            options,
        )

    got = run()
    bound = 1e-5 if IS_INTERPRETED else 2e-2
    for i, length in enumerate(LENS):
        slots = table[1 + i, :length].long()
        want = attend(q[i], keys[slots], values[slots], options)
        torch.testing.assert_close(got[i], want, rtol=bound, atol=bound)
    assert torch.equal(got, run())
    assert not decode_splits.counters(q.device).any()


def test_many_values_are_left_to_a_second_kernel(monkeypatch):
    """A program that combined the heads of a latent cache would be alone with all of them."""
    launched = []
    kernel = decode_splits._combine_kernel

    class Kernel:
        def __getitem__(self, grid):
            launched.append(grid)
            return kernel[grid]

    monkeypatch.setattr(decode_splits, "_combine_kernel", Kernel())
    table, lens = torch.zeros(2, 64, dtype=torch.int32), torch.tensor([20])
    span = torch.tensor([8], dtype=torch.int32)
    for num_heads, is_apart in ((8, False), (16, True)):
        q, keys = torch.randn(1, num_heads, 128), torch.randn(4, 1, 128)
        decode_attention(q, keys, keys, table, lens * 0, lens, None, 3, span, DecodeOptions(0.1))
        assert bool(launched) == is_apart
