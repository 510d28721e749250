"""Which products of few rows leave torch, and how they are cut."""

from __future__ import annotations

import pytest
import torch

from sglang.srt.layers import few_rows_tiles
from sglang.srt.layers.few_rows_tiles import (
    MAX_COUNTERS,
    SHARED_MEMORY,
    Tile,
    block_rows,
    choose_tile,
    few_rows_tile,
    rule,
)
from sglang.srt.layers.tuned_few_rows import TUNED

FIELDS = (32, 128, 2, False, 4, 3)


@pytest.fixture
def table(monkeypatch):
    entries: dict = {(1024, 2048): {4: None, 16: FIELDS, 64: (64, 128, 2, False, 4, 3)}}
    monkeypatch.setattr(few_rows_tiles, "TUNED", entries)
    choose_tile.cache_clear()
    yield entries
    choose_tile.cache_clear()


def test_what_was_measured_decides(table):
    assert choose_tile(3, 1024, 2048) is None
    assert choose_tile(5, 1024, 2048) == choose_tile(16, 1024, 2048) == Tile(*FIELDS)
    assert choose_tile(17, 1024, 2048).block_n == 64
    assert choose_tile(65, 1024, 2048) is None


def test_only_small_weights_go_by_the_rule(table):
    assert choose_tile(8, 2048, 2048) == rule(8, 2048, 2048)
    assert choose_tile(128, 2048, 2048) is None
    assert choose_tile(8, 16384, 4096) is None
    assert choose_tile(8, 64, 64) is None


def test_nothing_goes_by_the_rule_before_anything_was_measured(table):
    table.clear()
    assert choose_tile(8, 2048, 2048) is None


def test_tensors_of_a_cpu_are_torchs():
    assert few_rows_tile(torch.randn(4, 64).half(), torch.randn(1024, 64).half()) is None


@pytest.mark.parametrize("num_rows", [2, 16, 17, 64, 128])
@pytest.mark.parametrize(
    "num_out, width", [(1024, 2048), (4096, 1024), (28672, 4096), (151936, 1024), (40, 48)]
)
def test_the_rules_tiles_fit(num_rows, num_out, width):
    check(rule(num_rows, num_out, width), num_rows, num_out, width)


def test_the_measured_tiles_fit():
    for (num_out, width), entries in TUNED.items():
        for num_rows, fields in entries.items():
            if fields is not None:
                check(Tile(*fields), num_rows, num_out, width)


def check(tile: Tile, num_rows: int, num_out: int, width: int) -> None:
    """Steps cover the weight once; nothing is larger than the device."""
    steps = tile.num_tiles(num_out) * tile.pieces(width)
    programs = tile.num_programs(num_out, width)
    assert (programs - 1) * tile.chunk < steps <= programs * tile.chunk
    assert tile.chunk >= min(2, tile.pieces(width))
    assert (tile.num_stages - 1) * tile.stage_bytes(block_rows(num_rows)) <= SHARED_MEMORY
    assert not tile.is_split(width) or tile.num_tiles(num_out) <= MAX_COUNTERS
