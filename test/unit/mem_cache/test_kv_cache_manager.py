from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from sglang.srt.mem_cache.kv_cache_manager import KVCacheManager
from sglang.srt.utils.errors import ConfigError


def _run(manager, tokens, extra_key=None, insert=True):
    """A whole request; returns how many tokens it found cached."""
    handle = manager.open(tokens, extra_key)
    assert manager.extend(handle, len(tokens) - handle.length) is not None
    cached = handle.num_cached_at_open
    manager.close(handle, tokens, insert=insert)
    manager.check()
    return cached


def test_the_padding_page_is_never_given_out():
    manager = KVCacheManager(num_slots=17, page_size=4, max_requests=2)
    assert manager.capacity == manager.num_available() == manager.num_free == 12
    handle = manager.open([])
    slots = manager.extend(handle, 12)
    assert sorted(slots.tolist()) == list(range(4, 16))
    assert slots.dtype == np.int32
    assert manager.extend(handle, 1) is None
    manager.check()


def test_a_prefix_is_found_by_the_next_request():
    manager = KVCacheManager(64, 4, 2)
    assert _run(manager, list(range(10))) == 0
    assert manager.num_cached == manager.num_evictable == 8
    assert manager.match(list(range(10))) == 8
    assert manager.match(list(range(10)), limit=7) == 4
    assert manager.match(list(range(10)), limit=-1) == 0
    assert manager.match(np.arange(10)) == 8
    handle = manager.open(list(range(10)), limit=9)
    assert (handle.length, handle.cached_len, handle.num_cached_at_open) == (8, 8, 8)
    assert manager.num_used == 8
    assert manager.num_evictable == 0
    manager.close(handle, list(range(8)))
    assert manager.num_used == 0
    manager.check()


def test_open_respects_the_limit():
    manager = KVCacheManager(64, 4, 4)
    _run(manager, list(range(16)))
    for limit, expected in [(None, 16), (15, 12), (3, 0), (0, 0)]:
        handle = manager.open(list(range(16)), limit=limit)
        assert handle.length == expected
        manager.check()
        manager.close(handle, list(range(expected)))


def test_no_row_means_none_and_no_change():
    manager = KVCacheManager(64, 1, 2)
    handles = [manager.open([]) for _ in range(2)]
    assert sorted(handle.row for handle in handles) == [0, 1]
    assert manager.open([1, 2]) is None
    manager.check()
    manager.close(handles[0], [])
    assert manager.open([]).row == handles[0].row


def test_slots_needed_counts_the_partly_filled_page():
    manager = KVCacheManager(num_slots=12, page_size=4, max_requests=1)
    handle = manager.open([])
    assert manager.slots_needed(handle, 3) == 4
    manager.extend(handle, 3)
    assert manager.slots_needed(handle, 1) == 0
    assert manager.slots_needed(handle, 2) == 4
    assert manager.can_extend(handle, 5)
    assert not manager.can_extend(handle, 6)
    before = handle.slots.tolist()
    assert manager.extend(handle, 6) is None
    assert handle.slots.tolist() == before
    assert len(manager.extend(handle, 5)) == 5
    assert handle.slots.tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
    with pytest.raises(ValueError, match="-1"):
        manager.extend(handle, -1)


@pytest.mark.parametrize("page_size", [1, 4])
def test_extend_many_equals_extend_one_by_one(page_size):
    one, many = (KVCacheManager(256, page_size, 8) for _ in range(2))
    handles_one, handles_many = [], []
    for num_tokens in (0, 1, 3, 4, 7):
        for manager, handles in ((one, handles_one), (many, handles_many)):
            handles.append(manager.open([]))
            manager.extend(handles[-1], num_tokens)
    for _ in range(9):
        expected = [one.extend(handle, 1)[0] for handle in handles_one]
        taken = many.extend_many(handles_many)
        assert taken.dtype == np.int32
        assert taken.tolist() == [handle.slots[-1] for handle in handles_many] == expected
        many.check()
    assert [h.length for h in handles_many] == [9, 10, 12, 13, 16]


@pytest.mark.parametrize("page_size", [1, 4])
def test_extend_many_is_all_or_nothing(page_size):
    manager = KVCacheManager(page_size * 4, page_size, 4)
    handles = [manager.open([]) for _ in range(4)]
    assert manager.extend_many(handles) is None
    assert [handle.length for handle in handles] == [0] * 4
    assert manager.num_free == manager.capacity
    assert len(manager.extend_many(handles[:3])) == 3
    manager.check()


def test_extension_evicts_only_what_nobody_uses():
    manager = KVCacheManager(num_slots=11, page_size=1, max_requests=3)
    _run(manager, [1, 2, 3])
    _run(manager, [7, 8, 9])
    user = manager.open([1, 2, 3])
    other = manager.open([])
    assert manager.num_available() == 7
    assert len(manager.extend(other, 7)) == 7
    manager.check()
    assert manager.match([7, 8, 9]) == 0
    assert manager.match([1, 2, 3]) == 3
    assert manager.num_evicted == 3
    assert manager.extend(other, 1) is None
    manager.close(user, [1, 2, 3])
    assert len(manager.extend(other, 1)) == 1
    assert manager.match([1, 2, 3]) == 2


def test_two_requests_with_one_prompt_share_after_commit():
    manager = KVCacheManager(64, 4, 2)
    prompt = list(range(10))
    first, second = manager.open(prompt), manager.open(prompt)
    for handle in (first, second):
        manager.extend(handle, 10)
    own = second.slots.tolist()
    manager.commit_prefix(first, prompt)
    assert first.table_dirty_from is None
    assert first.cached_len == 8
    used = manager.num_used
    manager.commit_prefix(second, prompt)
    manager.check()
    assert second.table_dirty_from == 0
    assert second.slots[:8].tolist() == first.slots[:8].tolist()
    assert second.slots[8:].tolist() == own[8:]
    assert manager.num_used == used - 8
    manager.close(first, prompt)
    assert manager.num_evictable == 0  # the second still uses them
    manager.close(second, prompt)
    assert manager.num_evictable == manager.num_cached == 8


def test_only_the_part_that_the_tree_had_is_replaced():
    manager = KVCacheManager(64, 2, 2)
    base, fork = [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 9, 9]
    first, second = manager.open(base), manager.open(fork)
    manager.extend(first, 6)
    manager.extend(second, 6)
    own = second.slots.tolist()
    manager.commit_prefix(second, fork[:2])  # first in: nothing changes for it
    assert second.table_dirty_from is None
    manager.commit_prefix(first, base)
    assert first.table_dirty_from == 0
    manager.commit_prefix(second, fork)
    assert second.table_dirty_from == 2
    assert second.slots.tolist() == [*own[:2], *first.slots[2:4].tolist(), *own[4:]]
    manager.check()


def test_the_first_dirty_position_is_kept_until_the_caller_resets_it():
    manager = KVCacheManager(64, 1, 2)
    first, second = manager.open([]), manager.open([])
    manager.extend(first, 4)
    manager.extend(second, 4)
    manager.commit_prefix(first, [1, 2, 3, 4])
    manager.commit_prefix(second, [1, 2])
    manager.commit_prefix(second, [1, 2, 3])
    assert second.table_dirty_from == 0
    second.table_dirty_from = None
    manager.commit_prefix(second, [1, 2, 3])
    assert second.table_dirty_from is None
    manager.commit_prefix(second, [1, 2, 3, 4])
    assert second.table_dirty_from == 3


def test_close_frees_the_slots_of_a_step_in_flight():
    manager = KVCacheManager(64, 4, 1)
    handle = manager.open([])
    manager.extend(handle, 9)
    manager.extend_many([handle])  # planned, not computed
    manager.close(handle, list(range(9)))
    manager.check()
    assert manager.num_cached == 8
    assert manager.num_free == manager.capacity - 8


def test_retraction_finds_its_tokens_again():
    manager = KVCacheManager(64, 1, 1)
    tokens = list(range(20))
    assert _run(manager, tokens, insert=False) == 0
    assert manager.num_cached == 0
    assert _run(manager, tokens, insert=True) == 0
    assert _run(manager, tokens, insert=False) == 20
    assert manager.num_cached == 20


def test_chunked_commits_build_one_path():
    manager = KVCacheManager(64, 4, 2)
    tokens = list(range(30))
    handle = manager.open(tokens)
    for end in (7, 8, 19, 30):
        manager.extend(handle, end - handle.length)
        manager.commit_prefix(handle, tokens[:end])
        assert handle.cached_len == end // 4 * 4
        assert handle.table_dirty_from is None
        manager.check()
    other = manager.open(tokens)
    assert other.slots.tolist() == handle.slots[:28].tolist()


def test_commit_refuses_tokens_without_slots():
    manager = KVCacheManager(64, 1, 1)
    handle = manager.open([])
    manager.extend(handle, 2)
    with pytest.raises(ValueError, match="3 computed tokens but only 2"):
        manager.commit_prefix(handle, [1, 2, 3])


def test_truncate_gives_back_whole_pages():
    manager = KVCacheManager(64, 4, 1)
    handle = manager.open([])
    slots = manager.extend(handle, 14)
    manager.commit_prefix(handle, [1, 2, 3, 4])
    manager.truncate(handle, 9)
    assert manager.num_used == 12
    assert handle.slots.tolist() == slots[:9].tolist()
    manager.truncate(handle, 8)
    assert manager.num_used == 8
    manager.check()
    with pytest.raises(ValueError, match=r"4 .*\.\. 8"):
        manager.truncate(handle, 3)
    with pytest.raises(ValueError, match="9"):
        manager.truncate(handle, 9)


def test_without_prefix_cache_everything_is_freed():
    manager = KVCacheManager(64, 4, 2, enable_prefix_cache=False)
    assert _run(manager, list(range(12))) == 0
    assert _run(manager, list(range(12))) == 0
    assert manager.num_free == manager.capacity
    assert manager.match(list(range(12))) == 0
    handle = manager.open([1, 2])
    manager.extend(handle, 8)
    manager.commit_prefix(handle, list(range(8)))
    assert (handle.cached_len, manager.num_cached) == (0, 0)


def test_extra_key_separates_requests():
    manager = KVCacheManager(64, 1, 2)
    _run(manager, [1, 2, 3], extra_key="adapter")
    assert manager.match([1, 2, 3]) == 0
    assert manager.match([1, 2, 3], "adapter") == 3
    assert _run(manager, [1, 2, 3]) == 0
    assert manager.num_cached == 6


def test_flush_is_refused_while_a_request_is_open():
    manager = KVCacheManager(64, 1, 2)
    _run(manager, [1, 2, 3])
    handle = manager.open([4])
    assert not manager.flush()
    assert manager.match([1, 2, 3]) == 3
    manager.close(handle, [])
    assert manager.flush()
    assert manager.num_free == manager.capacity
    assert manager.match([1, 2, 3]) == 0
    manager.check()


def test_a_closed_handle_is_refused():
    manager = KVCacheManager(64, 1, 1)
    handle = manager.open([])
    manager.close(handle, [])
    reopened = manager.open([])
    assert reopened.row == handle.row
    for call in (
        lambda: manager.close(handle, []),
        lambda: manager.close(handle, [], insert=False),
        lambda: manager.extend(handle, 1),
        lambda: manager.take_encoder(handle, 1),
        lambda: manager.commit_prefix(handle, []),
        lambda: manager.withdraw(handle, 0),
        lambda: manager.truncate(handle, 0),
    ):
        with pytest.raises(AssertionError, match="closed"):
            call()


def test_given_slots_do_not_change_afterwards():
    manager = KVCacheManager(64, 1, 2)
    first, second = manager.open([]), manager.open([])
    manager.extend(first, 2)
    manager.commit_prefix(first, [1, 2])
    given = manager.extend(second, 2)
    before = given.tolist()
    manager.commit_prefix(second, [1, 2])
    assert given.tolist() == before != second.slots.tolist()


def test_audit_sees_a_leak():
    manager = KVCacheManager(64, 1, 2)
    handle = manager.open([])
    manager.extend(handle, 3)
    handle.length = 2
    with pytest.raises(AssertionError, match=r"lost or doubled: \[3\]"):
        manager.check()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((64, 0, 1), "page_size=0"),
        ((64, 64, 1), "padding"),
        ((64, 1, 0), "max_requests=0"),
        ((64, 1, 1, True, "random"), "'random'"),
    ],
)
def test_bad_configurations_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        KVCacheManager(*arguments)


def test_the_host_side_does_not_import_torch():
    code = "import sys, sglang.srt.mem_cache.kv_cache_manager; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("page_size", [1, 4])
def test_requests_that_grow_together_keep_their_slots_in_one_run(page_size):
    manager = KVCacheManager(1000 * page_size, page_size, 4)
    handles = [manager.open([], max_length=24 * page_size) for _ in range(3)]
    for handle in handles:
        manager.extend(handle, 8 * page_size)
    for _ in range(16 * page_size):
        manager.extend_many(handles)
    for handle in handles:
        assert np.all(np.diff(handle.slots) == 1)
    manager.check()
    for handle in handles:
        manager.close(handle, [])
    assert manager.num_free == manager.capacity
    manager.check()


def test_room_ends_where_the_request_may_end():
    manager = KVCacheManager(400, 4, 2)
    handle = manager.open([], max_length=20)
    manager.extend(handle, 8)
    assert len(handle.room) == 3
    manager.extend(handle, 16)  # beyond what was announced
    assert not handle.room
    silent = manager.open([])
    manager.extend(silent, 4)
    assert not silent.room
    manager.check()


@pytest.mark.parametrize("page_size", [1, 4])
def test_a_truncated_request_grows_on_in_one_run(page_size):
    manager = KVCacheManager(400 * page_size, page_size, 2)
    handle = manager.open([], max_length=20 * page_size)
    manager.extend(handle, 8 * page_size)
    manager.truncate(handle, 5 * page_size)
    manager.check()
    for _ in range(10 * page_size):
        manager.extend_many([handle])
    assert np.all(np.diff(handle.slots) == 1)
    manager.check()


def test_room_is_given_up_when_others_need_it():
    manager = KVCacheManager(41, 1, 2)
    greedy, other = manager.open([], max_length=1000), manager.open([])
    manager.extend(greedy, 4)
    assert len(greedy.room) == 9, "a quarter of what is left"
    assert manager.num_free == 36, "room counts as free"
    assert manager.extend(other, 36) is not None
    assert manager.num_free == 0 and not greedy.room
    assert manager.extend_many([greedy]) is None
    manager.check()


def test_freed_slots_come_back_as_a_run():
    manager = KVCacheManager(64, 1, 2, enable_prefix_cache=False)
    handle = manager.open([])
    first = manager.extend(handle, 30)
    manager.close(handle, [])
    again = manager.extend(manager.open([]), 30)
    assert first.tolist() == again.tolist() == sorted(again.tolist())
