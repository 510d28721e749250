"""Random event sequences against a naive model of the cache and a simulated device.

The simulated device holds for each slot a fingerprint of the whole prefix that was computed into
it, so a slot that is shared, freed or replaced wrongly shows as wrong content.
"""

from __future__ import annotations

import random

import pytest

from sglang.srt.mem_cache.kv_cache_manager import KVCacheManager, RequestCache

_IN_FLIGHT = "written by a step that nobody waits for"


class _Request:
    def __init__(self, handle: RequestCache, tokens: list[int], extra_key: str | None) -> None:
        self.handle = handle
        self.tokens = tokens
        self.extra_key = extra_key
        self.computed = handle.cached_len
        self.table = handle.slots.tolist()  # the row as the device sees it
        self.hidden_from = 10**9  # what it has in the tree from there on is withdrawn


class _World:
    def __init__(self, seed: int, page_size: int, prefix_cache: bool, policy: str) -> None:
        self.random = random.Random(seed)
        self.page_size = page_size
        self.max_requests = 5
        self.manager = KVCacheManager(
            page_size * 20 + page_size // 2, page_size, self.max_requests, prefix_cache, policy
        )
        self.requests: list[_Request] = []
        self.history: list[list[int]] = [[]]
        self.device: dict[int, object] = {}
        # Naive cache: (extra key, prefix of whole pages) -> slots of the last page.
        self.cached: dict[tuple[str | None, tuple[int, ...]], list[int]] = {}
        self.num_shared = self.num_dirty = self.num_refused = self.num_hidden = 0
        self._watch_eviction()

    def _watch_eviction(self) -> None:
        evict = self.manager._tree.evict

        def watched(num_tokens):
            slots = evict(num_tokens)
            gone = set(slots.tolist())
            for request in self.requests:
                handle = request.handle
                assert gone.isdisjoint(handle.slots[: handle.cached_len].tolist())
            for key in [key for key, page in self.cached.items() if gone & set(page)]:
                gone -= set(self.cached.pop(key))
            assert not gone, "evicted slots that were not cached"
            for extra_key, prefix in self.cached:
                parent = prefix[: -self.page_size]
                assert not parent or (extra_key, parent) in self.cached
            return slots

        self.manager._tree.evict = watched

    def fingerprint(self, request: _Request, end: int) -> list[int]:
        value, out = hash(request.extra_key), []
        for token in request.tokens[:end]:
            value = hash((value, token))
            out.append(value)
        return out

    def naive_match(self, tokens: list[int], extra_key: str | None, limit: int) -> int:
        end = 0
        while end + self.page_size <= min(len(tokens), limit):
            if (extra_key, tuple(tokens[: end + self.page_size])) not in self.cached:
                break
            end += self.page_size
        return end

    def step(self) -> None:
        event = self.random.choices(
            [
                self.open,
                self.extend,
                self.decode,
                self.commit,
                self.close,
                self.truncate,
                self.withdraw,
                self.flush,
            ],
            [6, 8, 6, 6, 4, 1, 0.2, 0.2],
        )[0]
        event()
        self.check()

    def open(self) -> None:
        source = self.pick()
        if source is not None and self.random.random() < 0.4:
            kept = source.tokens  # a twin of an open request: duplicates to be merged
        else:
            kept = self.random.choice(self.history)
            kept = kept[: self.random.randint(0, len(kept))]
        fresh = [
            self.random.randint(0, 2) for _ in range(self.random.randint(0, 3 * self.page_size))
        ]
        tokens = kept + fresh
        tokens = tokens[: self.page_size * 9]
        extra_key = self.random.choice([None, None, "a"])
        limit = self.random.choice([len(tokens), max(len(tokens) - 1, 0), self.page_size])
        expected = self.naive_match(tokens, extra_key, limit)
        assert self.manager.match(tokens, extra_key, limit) == expected
        max_length = len(tokens) + [0, 3 * self.page_size, 10**6][len(self.requests) % 3]
        handle = self.manager.open(tokens, extra_key, limit, max_length)
        if len(self.requests) == self.max_requests:
            assert handle is None
            return
        assert handle.length == handle.cached_len == handle.num_cached_at_open == expected
        self.num_shared += expected
        self.history = [*self.history[-20:], tokens]
        self.requests.append(_Request(handle, list(tokens), extra_key))

    def pick(self) -> _Request | None:
        return self.random.choice(self.requests) if self.requests else None

    def extend(self) -> None:
        request = self.pick()
        if request is None:
            return
        handle = request.handle
        num_tokens = self.random.randint(0, 2 * self.page_size + 1)
        fits = self.manager.slots_needed(handle, num_tokens) <= self.manager.num_available()
        before, available = handle.slots.tolist(), self.manager.num_available()
        evicted = self.manager.num_evicted
        needed = self.manager.slots_needed(handle, num_tokens)
        slots = self.manager.extend(handle, num_tokens)
        assert (slots is not None) == fits
        if slots is None:
            self.num_refused += 1
            assert handle.slots.tolist() == before
            assert self.manager.num_available() == available
            assert self.manager.num_evicted == evicted
            return
        assert self.manager.num_available() == available - needed
        assert handle.slots.tolist() == before + slots.tolist()
        request.table += slots.tolist()
        if self.random.random() < 0.8:
            self.compute(request)

    def decode(self) -> None:
        batch = self.random.sample(self.requests, self.random.randint(0, len(self.requests)))
        lengths = [request.handle.length for request in batch]
        needed = sum(self.manager.slots_needed(request.handle, 1) for request in batch)
        available, evicted = self.manager.num_available(), self.manager.num_evicted
        slots = self.manager.extend_many([request.handle for request in batch])
        assert (slots is not None) == (needed <= available)
        if slots is None:
            self.num_refused += 1
            assert [request.handle.length for request in batch] == lengths
            assert self.manager.num_evicted == evicted
            return
        assert self.manager.num_available() == available - needed
        for request, slot in zip(batch, slots.tolist(), strict=True):
            request.table.append(slot)
            if self.random.random() < 0.7:
                self.compute(request)

    def compute(self, request: _Request) -> None:
        """The device runs up to the last slot; new tokens appear as they are needed."""
        end = request.handle.length
        while len(request.tokens) < end:
            request.tokens.append(self.random.randint(0, 2))
        values = self.fingerprint(request, end)
        for position in range(request.computed, end):
            self.device[request.table[position]] = values[position]
        request.computed = end

    def commit(self) -> None:
        request = self.pick()
        if request is None:
            return
        handle = request.handle
        end = self.random.choice([request.computed, self.random.randint(0, request.computed)])
        before = handle.slots.tolist()
        self.manager.commit_prefix(handle, request.tokens[:end])
        if self.manager.enable_prefix_cache:
            assert handle.cached_len >= end // self.page_size * self.page_size
        after = handle.slots.tolist()
        dirty = handle.table_dirty_from
        changed = [i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
        assert dirty == (changed[0] if changed else None)
        if dirty is not None:
            self.num_dirty += 1
            request.table[dirty:] = after[dirty:]
            handle.table_dirty_from = None
        self.remember(request, end)

    def remember(self, request: _Request, end: int) -> None:
        if not self.manager.enable_prefix_cache:
            return
        slots = request.handle.slots.tolist()
        end = min(end, request.hidden_from)
        for stop in range(self.page_size, end + 1, self.page_size):
            page = slots[stop - self.page_size : stop]
            key = (request.extra_key, tuple(request.tokens[:stop]))
            assert self.cached.setdefault(key, page) == page

    def close(self) -> None:
        request = self.pick()
        if request is None:
            return
        self.requests.remove(request)
        insert = self.random.random() < 0.7
        # What is in flight lands before anything that is launched later.
        for slot in request.table[request.computed :]:
            self.device[slot] = _IN_FLIGHT
        self.manager.close(request.handle, request.tokens[: request.computed], insert=insert)
        self.history.append(request.tokens)
        if insert:
            self.remember(request, request.computed)

    def truncate(self) -> None:
        request = self.pick()
        if request is None:
            return
        length = self.random.randint(request.handle.cached_len, request.handle.length)
        self.manager.truncate(request.handle, length)
        request.computed = min(request.computed, length)
        del request.table[length:], request.tokens[length:]

    def withdraw(self) -> None:
        request = self.pick()
        if request is None:
            return
        size, end = self.page_size, min(request.handle.cached_len, request.hidden_from)
        start = self.random.randint(0, request.handle.cached_len // size) * size
        self.manager.withdraw(request.handle, start)
        if start >= end:
            return
        slot, head = request.table[start], tuple(request.tokens[: start + size])
        for key in [key for key in self.cached if key[0] == request.extra_key]:
            if key[1][: start + size] == head:
                del self.cached[key]
        for other in self.requests:
            if other.handle.cached_len > start and other.table[start] == slot:
                other.hidden_from = min(other.hidden_from, start)
                self.num_hidden += other is not request

    def flush(self) -> None:
        assert self.manager.flush() == (not self.requests)
        if not self.requests:
            self.cached.clear()

    def check(self) -> None:
        manager = self.manager
        manager.check()
        assert manager.num_open == len(self.requests)
        hidden: set[int] = set()
        for request in self.requests:
            hidden.update(request.table[request.hidden_from : request.handle.cached_len])
        assert manager.num_cached == len(self.cached) * self.page_size + len(hidden)
        assert manager.num_free + manager.num_evictable + manager.num_used == manager.capacity
        locked = set()
        for request in self.requests:
            handle = request.handle
            assert handle.slots.tolist() == request.table
            locked.update(request.table[: handle.cached_len])
            on_device = [self.device[slot] for slot in request.table[: request.computed]]
            assert on_device == self.fingerprint(request, request.computed)
        assert manager.num_cached - manager.num_evictable == len(locked)


@pytest.mark.parametrize("policy", ["lru", "lfu"])
@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_random_events(page_size, policy):
    refused = evicted = dirty = shared = hidden = 0
    for seed in range(3):
        world = _World(seed, page_size, prefix_cache=True, policy=policy)
        for _ in range(1800):
            world.step()
        refused += world.num_refused
        evicted += world.manager.num_evicted
        dirty += world.num_dirty
        shared += world.num_shared
        hidden += world.num_hidden
        while world.requests:
            world.close()
        world.check()
        assert world.manager.num_used == 0
        assert world.manager.flush()
        assert world.manager.num_free == world.manager.capacity
    # The sequences reached what they are meant to test.
    assert min(refused, evicted, dirty, shared) > 20 and hidden > 0


@pytest.mark.parametrize("page_size", [1, 4])
def test_random_events_without_prefix_cache(page_size):
    world = _World(7, page_size, prefix_cache=False, policy="lru")
    for _ in range(1500):
        world.step()
    assert world.num_shared == world.num_dirty == world.manager.num_evicted == 0
    assert world.num_refused > 5
    while world.requests:
        world.close()
    assert world.manager.num_free == world.manager.capacity
