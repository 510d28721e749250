"""The Triton attention backend: its plans on the host, its refusals, and its kernels in the interpreter of Triton."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from triton_interpreter import ROOT, output_of, run_cases

from sglang.srt.layers.attention import registry
from sglang.srt.layers.attention.registry import create_attention_backend
from sglang.srt.layers.attention.triton_ops import plan
from sglang.srt.utils.errors import ConfigError

HAS_TRITON = importlib.util.find_spec("triton") is not None
RUNNER = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.skipif(not HAS_TRITON, reason="the package triton is not installed")
@pytest.mark.parametrize("name", ["triton_cases.py", "triton_decode_cases.py"])
def test_kernels_in_the_interpreter(name):
    done = run_cases(name, ROOT / "test" / "gpu")
    if "the interpreter cannot run loops" in done.stdout:
        pytest.skip("this Triton's interpreter and this numpy do not fit together")
    output = output_of(done)
    assert " passed" in output and "skipped" not in output


def test_refused_without_triton(monkeypatch):
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="not installed.*torch_native"):
        create_attention_backend("triton", RUNNER)


@pytest.mark.skipif(not HAS_TRITON, reason="the package triton is not installed")
def test_refused_on_a_cpu_without_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match="needs device cuda, not cpu"):
        create_attention_backend("triton", RUNNER)


@pytest.mark.skipif(not HAS_TRITON, reason="the package triton is not installed")
@pytest.mark.parametrize(("num_ranks", "num_heads"), [(1, 8), (4, 2)])
def test_splits_are_planned_for_the_heads_of_a_rank(monkeypatch, num_ranks, num_heads):
    monkeypatch.setattr(registry, "_check_triton", lambda *args: None)
    monkeypatch.setattr(registry, "get_tensor_model_parallel_world_size", lambda: num_ranks)
    config = SimpleNamespace(
        get_num_kv_heads=lambda tp_size: 8 // tp_size,
        facts=SimpleNamespace(attention_chunk_size=None),
    )
    pool = SimpleNamespace(max_context_len=64)
    runner = SimpleNamespace(model_config=config, req_to_token_pool=pool, **vars(RUNNER))
    assert create_attention_backend("triton", runner).num_kv_heads == num_heads


@pytest.mark.parametrize(
    "dim, block, tail",
    [(64, 64, 0), (128, 128, 0), (576, 512, 64), (192, 128, 64), (96, 64, 32), (80, 64, 16)]
    + [(112, 128, 0), (8, 16, 0), (24, 32, 0), (40, 32, 16), (72, 64, 16), (256, 256, 0)],
)
def test_head_dims_are_covered_by_powers_of_two(dim, block, tail):
    found = plan.split_head_dim(dim)
    assert (found.block, found.tail) == (block, tail)
    assert found.padded >= dim


def test_tiles_cover_every_new_token_once_and_the_longest_come_first():
    new_lens, prefix_lens = np.array([9, 0, 1, 20]), np.array([0, 7, 100, 3])
    tiles = plan.build_tiles(new_lens, prefix_lens, 8)
    assert tiles.dtype == np.int32
    covered = sorted(
        (r, t) for r, first in tiles.tolist() for t in range(first, min(first + 8, new_lens[r]))
    )
    assert covered == [(r, t) for r, n in enumerate(new_lens) for t in range(n)]
    num_keys = prefix_lens[tiles[:, 0]] + tiles[:, 1]
    assert (np.diff(num_keys) <= 0).all()
    assert plan.build_tiles(np.zeros(2, int), np.zeros(2, int), 8).shape == (0, 2)


@pytest.mark.parametrize("lens", [[1], [131072], [1000] * 64, [100] * 63 + [100000], [5] * 512])
@pytest.mark.parametrize("num_kv_heads", [1, 8])
def test_splits_reach_the_longest_request(lens, num_kv_heads):
    found = plan.plan_splits(np.array(lens), num_kv_heads, num_processors=132)
    assert 1 <= found.num_splits <= plan.MAX_SPLITS
    assert (
        found.num_splits * found.split_len >= max(lens) > (found.num_splits - 1) * found.split_len
    )
    fewer = plan.fit_splits(found, 4)
    assert fewer.num_splits == 4 and 4 * fewer.split_len >= max(lens)


def test_splits_follow_the_work():
    """One long request is spread over the device; many equal ones are not split; one straggler is."""
    assert plan.plan_splits(np.array([131072]), 8, 132).num_splits >= 64
    assert plan.plan_splits(np.array([1000] * 128), 8, 132).num_splits == 1
    skewed = plan.plan_splits(np.array([100] * 128 + [100000]), 8, 132)
    assert skewed.num_splits > 32 and skewed.split_len > 100


@pytest.mark.parametrize("batch_size", [1, 8, 64, 512])
def test_captured_splits_shrink_with_the_batch(batch_size):
    found = plan.count_graph_splits(batch_size, 8, 132)
    assert found == {1: 128, 8: 17, 64: 4, 512: 4}[batch_size]


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("dim, v_dim", [(64, 64), (128, 128), (192, 128), (256, 256), (576, 512)])
def test_tiles_fit_in_shared_memory(itemsize, dim, v_dim):
    """Queries and one block of keys and values, within the 227 KiB of the smallest supported data-centre GPU."""
    configs = [plan.extend_config(rows, dim, v_dim, itemsize) for rows in (1, 40, 4000)]
    configs += [plan.decode_config(group, dim, v_dim, itemsize) for group in (1, 8, 128)]
    for config in configs:
        assert config.block_m >= 16 and config.block_n >= 16
        width = plan.split_head_dim(dim).padded
        used = config.block_m * width + config.block_n * (width + v_dim)
        assert used * itemsize <= 227 * 1024
