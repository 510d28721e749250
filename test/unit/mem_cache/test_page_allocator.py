from __future__ import annotations

import numpy as np
import pytest

from sglang.srt.mem_cache.allocator import PageAllocator
from sglang.srt.utils.errors import ConfigError


def test_hands_out_every_page_but_the_padding_page():
    allocator = PageAllocator(num_pages=5, page_size=4)
    pages = allocator.alloc_pages(4)
    assert pages.tolist() == [1, 2, 3, 4]
    assert pages.dtype == np.int32
    assert allocator.num_free == 0
    assert allocator.alloc_pages(1) is None
    assert len(allocator.alloc_pages(0)) == 0


def test_too_many_changes_nothing():
    allocator = PageAllocator(num_pages=4, page_size=1)
    assert allocator.alloc_pages(4) is None
    assert allocator.num_free == 3
    allocator.check()


def test_freed_pages_come_back():
    allocator = PageAllocator(num_pages=6, page_size=2)
    first = allocator.alloc_pages(3)
    allocator.free_pages(first[1:])
    allocator.check()
    again = allocator.alloc_pages(4)
    assert sorted([first[0], *again]) == [1, 2, 3, 4, 5]


def test_freeing_twice_or_freeing_padding_is_an_error():
    allocator = PageAllocator(num_pages=4, page_size=1)
    page = allocator.alloc_pages(1)
    allocator.free_pages(page)
    with pytest.raises(AssertionError, match="freed twice"):
        allocator.free_pages(page)
    with pytest.raises(AssertionError, match="padding"):
        allocator.free_pages(np.array([0], dtype=np.int32))


def test_audit_sees_a_page_freed_twice_in_one_call():
    allocator = PageAllocator(num_pages=4, page_size=1)
    page = allocator.alloc_pages(2)[:1]
    allocator.free_pages(np.concatenate([page, page]))
    with pytest.raises(AssertionError, match="disagree"):
        allocator.check()


@pytest.mark.parametrize(("num_pages", "limit"), [(1200, 1024), (32_000, 2000)])
def test_the_stack_is_sorted_once_enough_has_been_freed(num_pages, limit):
    allocator = PageAllocator(num_pages, page_size=1)
    pages = allocator.alloc_pages(num_pages - 1)
    freed = np.random.default_rng(0).permutation(pages)[:limit]
    for page in freed:
        allocator.free_pages(np.array([page], dtype=np.int32))
    assert allocator.alloc_pages(2).tolist() == freed[-2:][::-1].tolist()  # the last one first
    allocator.free_pages(freed[-2:])
    assert allocator.alloc_pages(limit).tolist() == sorted(freed.tolist())
    allocator.check()
    for page in (5, 9, 7):
        allocator.free_pages(np.array([page], dtype=np.int32))
    assert allocator.alloc_pages(3).tolist() == [7, 9, 5]  # counted anew since then


@pytest.mark.parametrize("page_size", [1, 4])
def test_slots_and_pages_are_inverse(page_size):
    allocator = PageAllocator(num_pages=9, page_size=page_size)
    pages = np.array([3, 1, 8], dtype=np.int32)
    slots = allocator.slots_of(pages)
    assert slots.dtype == np.int32
    expected = [page * page_size + i for page in (3, 1, 8) for i in range(page_size)]
    assert slots.tolist() == expected
    assert allocator.pages_of(slots).tolist() == [3, 1, 8]


@pytest.mark.parametrize(("num_pages", "page_size"), [(1, 1), (0, 4), (8, 0)])
def test_refuses_a_pool_without_usable_pages(num_pages, page_size):
    with pytest.raises(ConfigError, match=r"page"):
        PageAllocator(num_pages, page_size)
