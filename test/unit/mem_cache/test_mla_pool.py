"""The pool of latents: one row per token, whose values are a part of its keys."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool

RANK, ROPE = 6, 2


def make_pool(**overrides: Any) -> MLATokenToKVPool:
    arguments: dict[str, Any] = {
        "size": 16,
        "page_size": 4,
        "dtype": torch.float32,
        "kv_lora_rank": RANK,
        "qk_rope_head_dim": ROPE,
        "layer_num": 3,
        "device": "cpu",
    }
    return MLATokenToKVPool(**(arguments | overrides))


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("is_split", [False, True])
def test_latents_land_in_their_slots(index_dtype: torch.dtype, is_split: bool) -> None:
    pool, layer = make_pool(start_layer=5), SimpleNamespace(layer_id=6)
    rows = torch.randn(3, 1, RANK + ROPE)
    loc = torch.tensor([9, 4, 15], dtype=index_dtype)
    if is_split:
        pool.set_mla_kv_buffer(layer, loc, rows[..., :RANK], rows[:, 0, RANK:])
    else:
        pool.set_kv_buffer(layer, loc, rows, rows[..., :RANK])
    keys, values = pool.get_kv_buffer(6)
    assert (keys.shape, values.shape) == ((16, 1, RANK + ROPE), (16, 1, RANK))
    assert torch.equal(keys[loc.long()], rows)
    assert torch.equal(values[loc.long()], rows[..., :RANK])
    assert not keys[[slot for slot in range(16) if slot not in (9, 4, 15)]].any()
    assert not pool.get_key_buffer(5).any() and not pool.get_key_buffer(7).any()
    with pytest.raises(ValueError, match="layer 4 is not in this pool"):
        pool.get_key_buffer(4)


def test_values_are_the_keys_first_columns_and_take_no_memory() -> None:
    pool = make_pool(dtype=torch.bfloat16)
    keys, values = pool.get_kv_buffer(0)
    keys.fill_(3.0)
    assert values.min() == 3.0
    per_token = MLATokenToKVPool.bytes_per_token(RANK, ROPE, 3, torch.bfloat16)
    assert per_token == 3 * (RANK + ROPE) * 2
    assert pool.total_bytes == 16 * per_token


def test_rows_are_cast_to_the_pool_dtype() -> None:
    pool, layer = make_pool(dtype=torch.bfloat16), SimpleNamespace(layer_id=0)
    latent, key = torch.randn(2, RANK), torch.randn(2, ROPE)
    pool.set_mla_kv_buffer(layer, torch.tensor([4, 5]), latent, key)
    assert torch.equal(pool.get_key_buffer(0)[4:6, 0], torch.cat([latent, key], dim=1).bfloat16())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [({"size": 15}, "multiple"), ({"dtype": torch.float8_e4m3fn}, "float8_e4m3fn")],
)
def test_what_does_not_fit_is_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_pool(**overrides)
