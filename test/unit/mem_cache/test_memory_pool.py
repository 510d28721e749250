from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool


def _pool(**overrides):
    arguments = {
        "size": 16,
        "page_size": 4,
        "dtype": torch.float32,
        "head_num": 2,
        "head_dim": 8,
        "layer_num": 3,
        "device": "cpu",
    }
    return MHATokenToKVPool(**(arguments | overrides))


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("flat", [False, True])
def test_keys_and_values_land_in_their_slots(index_dtype, flat):
    pool = _pool(v_head_dim=4)
    keys, values = torch.randn(3, 2, 8), torch.randn(3, 2, 4)
    loc = torch.tensor([9, 4, 15], dtype=index_dtype)
    given = (keys.flatten(1), values.flatten(1)) if flat else (keys, values)
    pool.set_kv_buffer(SimpleNamespace(layer_id=1), loc, *given)
    key_buffer, value_buffer = pool.get_kv_buffer(1)
    assert key_buffer.shape == (16, 2, 8)
    assert value_buffer.shape == (16, 2, 4)
    assert torch.equal(key_buffer[loc.long()], keys)
    assert torch.equal(value_buffer[loc.long()], values)
    untouched = [slot for slot in range(16) if slot not in (9, 4, 15)]
    assert not key_buffer[untouched].any()
    assert not pool.get_key_buffer(0).any() and not pool.get_value_buffer(2).any()


def test_strided_keys_are_accepted():
    pool = _pool()
    fused = torch.randn(2, 3 * 16)  # [T, q | k | v]
    _, keys, values = fused.split(16, dim=-1)
    pool.set_kv_buffer(SimpleNamespace(layer_id=0), torch.tensor([5, 6]), keys, values)
    assert torch.equal(pool.get_key_buffer(0)[5:7], keys.reshape(2, 2, 8))
    assert torch.equal(pool.get_value_buffer(0)[5:7], values.reshape(2, 2, 8))


def test_values_are_cast_and_not_scaled():
    pool = _pool(dtype=torch.bfloat16)
    keys, values = torch.randn(1, 2, 8), torch.randn(1, 2, 8)
    before = keys.clone()
    pool.set_kv_buffer(
        SimpleNamespace(layer_id=0), torch.tensor([7]), keys, values, k_scale=2.0, v_scale=2.0
    )
    assert pool.dtype == pool.get_key_buffer(0).dtype == torch.bfloat16
    assert torch.equal(pool.get_key_buffer(0)[7], keys[0].bfloat16())
    assert torch.equal(keys, before)


def test_layers_start_at_start_layer():
    pool = _pool(start_layer=10)
    ones = torch.ones(1, 2, 8)
    pool.set_kv_buffer(SimpleNamespace(layer_id=12), torch.tensor([4]), ones, ones)
    assert pool.get_key_buffer(12)[4].all()
    for layer_id in (9, 13):
        with pytest.raises(ValueError, match=r"10 \.\. 12"):
            pool.get_key_buffer(layer_id)


def test_bytes_per_token_times_size_is_the_total():
    for v_head_dim in (None, 4):
        pool = _pool(dtype=torch.float16, v_head_dim=v_head_dim)
        per_token = MHATokenToKVPool.bytes_per_token(2, 8, 3, torch.float16, v_head_dim)
        assert pool.total_bytes == per_token * 16
    assert MHATokenToKVPool.bytes_per_token(2, 8, 3, torch.float16) == 3 * 2 * 16 * 2


@pytest.mark.parametrize("overrides", [{"size": 15}, {"size": 4}, {"page_size": 0}])
def test_bad_sizes_are_refused(overrides):
    with pytest.raises(ValueError, match="page_size"):
        _pool(**overrides)


@pytest.mark.parametrize("page_size", [1, 4])
def test_two_pages_are_enough(page_size):
    assert _pool(size=2 * page_size, page_size=page_size).get_key_buffer(0).any().item() is False


def test_a_dtype_that_needs_scales_is_refused():
    with pytest.raises(ValueError, match="float8_e4m3fn"):
        _pool(dtype=torch.float8_e4m3fn)


def test_the_row_table_starts_at_the_padding_slot():
    table = ReqToTokenPool(size=3, max_context_len=7, device="cpu").req_to_token
    assert table.shape == (3, 7)
    assert table.dtype == torch.int32
    assert not table.any()
    with pytest.raises(ValueError, match="0"):
        ReqToTokenPool(size=0, max_context_len=7, device="cpu")
