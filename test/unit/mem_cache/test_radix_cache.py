from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.mem_cache.radix_cache import RadixCache, as_tokens
from sglang.srt.utils.errors import ConfigError


class Tree:
    """A radix cache fed with fresh slot numbers, audited after each operation."""

    def __init__(self, page_size: int = 1, policy: str = "lru") -> None:
        self.cache = RadixCache(page_size, policy)
        self.locked: list = []
        self.num_slots = 0

    def add(self, tokens, extra_key=None):
        """What a request does that computes `tokens` and ends."""
        node, cached = self.cache.acquire(as_tokens(tokens), extra_key)
        rest = as_tokens(tokens)[len(cached) :]
        rest = rest[: len(rest) // self.cache.page_size * self.cache.page_size]
        slots = np.arange(self.num_slots, self.num_slots + len(rest), dtype=np.int32)
        self.num_slots += len(rest)
        self.cache.insert(node, rest, slots)
        self.cache.unlock(node)
        self.check()

    def lock(self, tokens, extra_key=None):
        node, _ = self.cache.acquire(as_tokens(tokens), extra_key)
        self.locked.append(node)
        self.check()
        return node

    def unlock(self, node):
        self.locked.remove(node)
        self.cache.unlock(node)
        self.check()

    def withdraw(self, node, start):
        freed = self.cache.withdraw(node, start)
        self.check()
        return len(freed)

    def evict(self, num_tokens):
        freed = self.cache.evict(num_tokens)
        self.check()
        return len(freed)

    def match(self, tokens, extra_key=None):
        return self.cache.match(as_tokens(tokens), extra_key)

    def check(self):
        self.cache.check(self.locked)


def test_matches_the_longest_common_prefix():
    tree = Tree()
    tree.add([1, 2, 3, 4])
    tree.add([1, 2, 7])
    assert tree.match([1, 2, 3, 4, 5]) == 4
    assert tree.match([1, 2, 7, 7]) == 3
    assert tree.match([1, 2, 9]) == 2
    assert tree.match([9]) == 0
    assert tree.match([]) == 0
    assert tree.cache.total_size == 5


def test_acquire_returns_the_slots_in_order_over_a_split():
    tree = Tree()
    tree.add([1, 2, 3, 4])  # slots 0..3
    tree.add([1, 2, 7, 8])  # slots 4, 5
    node, slots = tree.cache.acquire(as_tokens([1, 2, 7, 8]))
    assert slots.tolist() == [0, 1, 4, 5]
    assert slots.dtype == np.int32
    tree.cache.unlock(node)
    _, slots = tree.cache.acquire(as_tokens([1, 2, 3, 9]))
    assert slots.tolist() == [0, 1, 2]


def test_matches_and_splits_in_whole_pages():
    tree = Tree(page_size=4)
    tree.add(range(10))
    assert tree.cache.total_size == 8
    assert tree.match(range(10)) == 8
    assert tree.match(range(7)) == 4
    assert tree.match(range(3)) == 0
    tree.add([0, 1, 2, 3, 4, 5, 99, 99])
    assert tree.cache.total_size == 12
    assert tree.match([0, 1, 2, 3, 4, 5, 99, 99]) == 8
    assert tree.match([0, 1, 2, 3, 4, 5, 99, 98]) == 4


def test_refuses_to_insert_part_of_a_page():
    cache = RadixCache(page_size=4)
    node, _ = cache.acquire(as_tokens([]))
    with pytest.raises(AssertionError, match="whole pages"):
        cache.insert(node, as_tokens([1, 2, 3]), np.arange(3, dtype=np.int32))


def test_extra_keys_do_not_share():
    tree = Tree()
    tree.add([1, 2, 3], extra_key="a")
    tree.add([1, 2], extra_key="b")
    assert tree.match([1, 2, 3], "a") == 3
    assert tree.match([1, 2, 3], "b") == 2
    assert tree.match([1, 2, 3]) == 0
    assert tree.cache.total_size == 5


def test_an_emptied_extra_key_leaves_nothing_behind():
    tree = Tree()
    for i in range(5):
        tree.add([1, 2], extra_key=f"salt{i}")
    tree.evict(100)
    assert list(tree.cache._iter_nodes()) == []
    node = tree.lock([1, 2], "unknown")
    tree.unlock(node)
    assert list(tree.cache._iter_nodes()) == []


def test_token_ids_wider_than_32_bits_differ():
    tree = Tree()
    tree.add([1, 2**40])
    assert tree.match([1, 0]) == 1
    assert tree.match([1, 2**40]) == 2


def test_insert_keeps_the_slots_of_the_tree_and_reports_them():
    cache = RadixCache(page_size=1)
    first, _ = cache.acquire(as_tokens([]))
    second, _ = cache.acquire(as_tokens([]))
    cache.insert(first, as_tokens([1, 2, 3]), np.array([10, 11, 12], dtype=np.int32))
    node, shared = cache.insert(
        second, as_tokens([1, 2, 4]), np.array([20, 21, 22], dtype=np.int32)
    )
    assert shared.tolist() == [10, 11]
    assert cache.path_slots(node).tolist() == [10, 11, 22]
    assert sorted(cache.all_slots().tolist()) == [10, 11, 12, 22]


def test_the_tree_copies_what_it_is_given():
    cache = RadixCache(page_size=1)
    node, _ = cache.acquire(as_tokens([]))
    tokens, slots = as_tokens([1, 2]), np.array([5, 6], dtype=np.int32)
    cache.insert(node, tokens, slots)
    tokens[:], slots[:] = 9, 9
    assert cache.match(as_tokens([1, 2])) == 2
    assert cache.all_slots().tolist() == [5, 6]


def test_lru_evicts_the_least_recently_used_leaf_first():
    tree = Tree(policy="lru")
    for first in (1, 2, 3):
        tree.add([first, 0, 0])
    assert tree.match([1]) == 1  # an access
    tree.evict(3)
    assert [tree.match([first, 0, 0]) for first in (3, 2, 1)] == [3, 0, 3]  # 3 before 1
    tree.evict(3)
    assert [tree.match([first, 0, 0]) for first in (1, 2, 3)] == [3, 0, 0]


def test_lfu_evicts_the_least_reused_first_and_breaks_ties_by_age():
    tree = Tree(policy="lfu")
    for first in (1, 2, 3):
        tree.add([first, 0, 0])
    tree.add([1, 0, 0])
    tree.match([2, 0, 0])  # looking is no reuse, but it is an access
    tree.evict(3)
    assert tree.match([3, 0, 0]) == 0
    assert tree.match([2, 0, 0]) == 3
    tree.evict(3)
    assert tree.match([2, 0, 0]) == 0
    assert tree.match([1, 0, 0]) == 3


def test_lfu_keeps_the_count_of_a_split_node():
    tree = Tree(policy="lfu")
    for _ in range(3):
        tree.add([1, 1, 1, 1])  # reused twice
    tree.add([1, 1, 3])  # the first half a third time
    for _ in range(3):
        tree.add([5, 5])  # reused twice, later
    tree.evict(1 + 2)
    assert tree.match([5, 5]) == 2
    assert tree.match([1, 1, 1, 1]) == 2
    tree.evict(2)
    assert tree.match([5, 5]) == 0
    assert tree.match([1, 1]) == 2


def test_eviction_cuts_the_tail_and_keeps_the_prefix():
    tree = Tree(page_size=2)
    tree.add(range(8))
    assert tree.evict(3) == 4
    assert tree.match(range(8)) == 4
    assert tree.evict(100) == 4
    assert tree.cache.total_size == 0


def test_eviction_goes_up_when_children_are_gone():
    tree = Tree()
    tree.add([1, 2, 3])
    tree.add([1, 2, 4])
    assert tree.evict(2) == 2
    assert tree.match([1, 2, 3]) == 2
    assert tree.evict(2) == 2
    assert tree.cache.total_size == 0


def test_locked_paths_stay():
    tree = Tree()
    tree.add([1, 2, 3, 4])
    tree.add([1, 2, 7])
    tree.add([8, 8])
    node = tree.lock([1, 2, 3])
    assert tree.cache.protected_size == 3
    assert tree.cache.evictable_size == 4
    assert tree.evict(100) == 4
    assert tree.match([1, 2, 3, 4]) == 3
    assert tree.evict(1) == 0
    again = tree.lock([1, 2, 3])
    tree.unlock(node)
    assert tree.evict(1) == 0
    tree.unlock(again)
    assert tree.cache.evictable_size == 3
    assert tree.evict(100) == 3


def test_a_lock_survives_a_split_above_it():
    tree = Tree()
    tree.add([1, 2, 3, 4])
    node = tree.lock([1, 2, 3, 4])
    tree.add([1, 2, 9])
    assert tree.cache.protected_size == 4
    assert tree.evict(100) == 1
    assert tree.cache.path_slots(node).tolist() == [0, 1, 2, 3]
    tree.unlock(node)
    assert tree.cache.protected_size == 0


def test_the_eviction_queue_stays_as_small_as_the_tree():
    tree = Tree()
    for i in range(20):
        tree.add([i % 4, 1, i % 3])
        tree.match([i % 4, 1, i % 3])
        tree.unlock(tree.lock([i % 4, 1]))
    assert len(tree.cache._queue) <= len(list(tree.cache._iter_nodes()))


def test_memory_of_evicted_tokens_is_given_back():
    tree = Tree()
    tree.add(range(1000))
    tree.evict(990)
    (leaf,) = [node for node in tree.cache._iter_nodes() if node.parent is not None]
    assert len(leaf.slots) == 10
    assert leaf.token_ids.base is None or leaf.token_ids.base.size <= 20


def test_clear_is_refused_while_locked():
    tree = Tree()
    node = tree.lock([1])
    with pytest.raises(AssertionError, match="in use"):
        tree.cache.clear()
    tree.unlock(node)
    tree.add([1, 2])
    assert tree.cache.clear().tolist() == [0, 1]
    tree.check()
    assert tree.match([1, 2]) == 0


def test_unknown_policy_is_named():
    with pytest.raises(ConfigError, match=r"'fifo'.*lru.*lfu"):
        RadixCache(1, "fifo")


def test_audit_sees_a_lost_lock_and_a_wrong_size():
    tree = Tree()
    tree.add([1, 2])
    node = tree.lock([1, 2])
    with pytest.raises(AssertionError, match="lock count"):
        tree.cache.check([])
    tree.cache._total_size += 1
    with pytest.raises(AssertionError, match="sizes"):
        tree.cache.check([node])


def _misplace_root(cache, root, leaf):
    cache._roots["other"] = cache._roots.pop(None)


def _leave_unused_root(cache, root, leaf):
    cache._roots["other"] = cache._make_node(None, "other", as_tokens([]), leaf.slots[:0])


def _fill_root(cache, root, leaf):
    root.token_ids, root.slots = leaf.token_ids, leaf.slots


def _empty_leaf(cache, root, leaf):
    leaf.token_ids, leaf.slots = leaf.token_ids[:0], leaf.slots[:0]
    root.children = {b"": leaf}


def _lose_slot(cache, root, leaf):
    leaf.slots = leaf.slots[1:]


def _halve_page(cache, root, leaf):
    leaf.token_ids, leaf.slots = leaf.token_ids[:3], leaf.slots[:3]


def _change_extra_key(cache, root, leaf):
    leaf.extra_key = "other"


def _change_key(cache, root, leaf):
    root.children = {b"other": leaf}


def _cut_from_parent(cache, root, leaf):
    leaf.parent = cache._make_node(None, None, root.token_ids, root.slots)


def _withdraw_unused(cache, root, leaf):
    leaf.is_withdrawn = True
    root.children = {cache._key(leaf): leaf}


def _empty_queue(cache, root, leaf):
    cache._queue.clear()


def _leave_out_of_queue(cache, root, leaf):
    cache._queue.clear()
    leaf.is_queued = False


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_misplace_root, "root by its extra key"),
        (_leave_unused_root, "root is of use"),
        (_fill_root, "root is empty"),
        (_empty_leaf, "whole pages"),
        (_lose_slot, "as many slots as tokens"),
        (_halve_page, "whole pages"),
        (_change_extra_key, "extra key of the parent"),
        (_change_key, "child by its key"),
        (_cut_from_parent, "parent link"),
        (_withdraw_unused, "withdrawn and unused"),
        (_empty_queue, "queue flag"),
        (_leave_out_of_queue, "leaf not queued"),
    ],
)
def test_audit_names_the_fault(damage, words):
    tree = Tree(page_size=2)
    tree.add([1, 2, 3, 4])
    root = tree.cache._roots[None]
    (leaf,) = root.children.values()
    damage(tree.cache, root, leaf)
    with pytest.raises(AssertionError, match=words):
        tree.check()


def test_audit_sees_a_lock_outside_the_tree():
    tree = Tree()
    tree.add([1, 2])
    (leaf,) = tree.cache._roots[None].children.values()
    tree.cache.clear()
    with pytest.raises(AssertionError, match="not in the tree"):
        tree.cache.check([leaf])


_runs = st.lists(st.lists(st.integers(0, 2), max_size=12), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(runs=_runs, probes=_runs, page_size=st.sampled_from([1, 2, 3]))
def test_match_equals_a_set_of_prefixes(runs, probes, page_size):
    tree = Tree(page_size)
    prefixes: set[tuple[int, ...]] = set()
    for run in runs:
        tree.add(run)
        prefixes |= {tuple(run[:n]) for n in range(page_size, len(run) + 1, page_size)}
    assert tree.cache.total_size == len(prefixes) * page_size
    for probe in probes:
        lengths = range(page_size, len(probe) + 1, page_size)
        expected = max((n for n in lengths if tuple(probe[:n]) in prefixes), default=0)
        assert tree.match(probe) == expected


@settings(max_examples=150, deadline=None)
@given(
    events=st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40),
    num_evicted=st.integers(1, 6),
)
def test_lru_order_equals_a_sorted_list(events, num_evicted):
    """Disjoint runs of one token: eviction order is the order of the last access."""
    tree = Tree()
    order: list[int] = []
    for token, insert in events:
        if insert:
            tree.add([token])
        if tree.match([token]):
            order = [other for other in order if other != token] + [token]
    tree.evict(num_evicted)
    kept = [token for token in range(6) if tree.match([token])]
    assert kept == sorted(order[num_evicted:])


def test_withdrawn_path_is_hidden_and_goes_with_its_last_lock():
    tree = Tree()
    tree.add([1, 2, 3, 4])
    tree.add([1, 2, 3, 5, 6])
    tree.add([1, 9])
    node, other = tree.lock([1, 2, 3, 4]), tree.lock([1, 2, 3])
    assert tree.withdraw(node, 2) == 2  # 5 and 6, which nobody holds
    assert tree.match([1, 2, 3, 4]) == 2 and tree.match([1, 9]) == 2
    assert tree.cache.total_size == 5
    assert tree.withdraw(node, 2) == tree.withdraw(other, 2) == 0
    tree.unlock(node)
    assert tree.cache.total_size == 4 and tree.match([1, 2, 3]) == 2
    tree.add([1, 2, 3, 4])  # beside what is hidden
    assert tree.match([1, 2, 3, 4]) == 4
    tree.unlock(other)
    assert tree.match([1, 2, 3, 4]) == 4 and tree.cache.total_size == 5
    assert tree.evict(9) == 5


def test_a_higher_withdrawal_takes_a_lower_one_with_it():
    tree = Tree(page_size=2)
    tree.add([1, 1, 2, 2, 3, 3], "tenant")
    node = tree.lock([1, 1, 2, 2, 3, 3], "tenant")
    assert tree.withdraw(node, 4) == 0 and tree.match([1, 1, 2, 2, 3, 3], "tenant") == 4
    assert tree.withdraw(node, 0) == 0 and tree.match([1, 1, 2, 2], "tenant") == 0
    assert tree.withdraw(node, 6) == 0
    tree.locked.clear()
    assert len(tree.cache.unlock(node)) == 6
    assert tree.cache.total_size == tree.evict(2) == 0
