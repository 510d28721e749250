"""Pages of encoder tokens in the KV cache manager."""

from __future__ import annotations

import pytest

from sglang.srt.mem_cache.kv_cache_manager import KVCacheManager


@pytest.mark.parametrize(("page_size", "taken"), [(1, 5), (4, 8)])
def test_taken_with_the_request_and_freed_with_it(page_size: int, taken: int) -> None:
    cache = KVCacheManager(16 * page_size, page_size, 2)
    handle = cache.open([1, 2, 3])
    assert handle is not None and len(handle.encoder) == 0
    assert cache.take_encoder(handle, 5)
    assert len(handle.encoder) == taken and handle.length == 0
    assert cache.num_available() == cache.capacity - taken
    slots = cache.extend(handle, 3)
    assert slots is not None and not set(slots.tolist()) & set(handle.encoder.tolist())
    cache.check()
    with pytest.raises(ValueError, match="has .* encoder slots already"):
        cache.take_encoder(handle, 1)
    cache.close(handle, [1, 2, 3])
    cache.check()
    assert cache.num_available() == cache.capacity
    # Only the tokens stay to be shared.
    assert cache.num_cached == 3 // page_size * page_size


def test_evicts_and_takes_back_rooms_but_no_more_than_there_is() -> None:
    cache = KVCacheManager(65, 1, 3)
    first = cache.open(list(range(30)))
    assert first is not None and cache.extend(first, 30) is not None
    cache.close(first, list(range(30)))
    second = cache.open([], max_length=1000)  # a room is set aside behind it
    third = cache.open([])
    assert second is not None and third is not None and cache.extend(second, 1) is not None
    before = cache.num_available()
    assert before == 63
    assert not cache.take_encoder(third, 64)
    assert cache.num_available() == before and cache.num_cached == 30
    assert cache.take_encoder(third, 63)
    assert cache.num_available() == 0 and cache.num_cached == 0
    cache.check()


def test_the_audit_notices_a_lost_page() -> None:
    cache = KVCacheManager(17, 1, 1)
    handle = cache.open([])
    assert handle is not None and cache.take_encoder(handle, 4)
    handle.encoder = handle.encoder[:3]
    with pytest.raises(AssertionError, match="lost or doubled"):
        cache.check()
