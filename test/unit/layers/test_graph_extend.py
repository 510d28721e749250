"""The buffers of a captured prefill: whatever the requests, tiles cover every token once and nothing else."""

from __future__ import annotations

import pytest
import torch

from sglang.srt.layers.attention.long_prompt import suits_long_prompt
from sglang.srt.layers.attention.triton_ops.graph_extend import (
    build_graph_extend,
    update_graph_extend,
)
from sglang.srt.layers.attention.triton_ops.metadata import find_tiles

NUM_TOKENS, MAX_REQUESTS, TILE = 64, 8, 16


def covered_rows(extend) -> list[int]:
    """Rows of the tokens that the tiles cover."""
    starts, new_lens = extend.metadata.starts.tolist(), extend.metadata.new_lens.tolist()
    rows = []
    for request, first in find_tiles(extend.metadata, TILE, True).tolist():
        last = min(first + TILE, new_lens[request])
        rows += [starts[request] + token for token in range(first, last)]
    return sorted(rows)


@pytest.mark.parametrize(
    "new_lens, prefix_lens",
    [
        ([64], [0]),
        ([5, 17], [3, 0]),
        ([1] * 8, list(range(8))),
        ([57, 1, 1, 1, 1, 1, 1, 1], [0] * 8),
    ],
)
def test_tiles_cover_real_and_padding_tokens_once(new_lens, prefix_lens):
    extend = build_graph_extend(NUM_TOKENS, torch.zeros(MAX_REQUESTS + 2, dtype=torch.int64))
    assert covered_rows(extend) == list(range(NUM_TOKENS))
    tiles = find_tiles(extend.metadata, TILE, True)
    for lens, prefixes in (([64], [0]), (new_lens, prefix_lens)):  # a smaller step after a larger
        update_graph_extend(extend, torch.tensor(lens).numpy(), torch.tensor(prefixes).numpy())
        assert find_tiles(extend.metadata, TILE, True) is tiles, "a graph reads what it captured"
        assert covered_rows(extend) == list(range(NUM_TOKENS))
    size, metadata = len(new_lens), extend.metadata
    assert metadata.new_lens[:size].tolist() == new_lens
    assert metadata.prefix_lens[:size].tolist() == prefix_lens
    assert metadata.seq_lens[:size].tolist() == [
        n + p for n, p in zip(new_lens, prefix_lens, strict=True)
    ]
    assert not metadata.prefix_lens[size:].any(), "padding reads no cache"
    # The kernel looks one row back where a request has no tokens.
    assert metadata.new_lens[-1] == 0 and metadata.starts[-1] >= 1


def test_long_prompts_are_for_gpus():
    assert not suits_long_prompt(torch.zeros(4096, 2, 64, dtype=torch.bfloat16))
