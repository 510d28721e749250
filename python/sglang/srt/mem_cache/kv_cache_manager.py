"""What the scheduler sees of the KV cache: rows, slots and shared prefixes, counted on the host.

Owns the page allocator and the radix tree. Knows nothing of device tensors: it hands out slot
numbers, and whoever runs the model writes them into the row's table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sglang.srt.mem_cache.allocator import PageAllocator, SlotArray
from sglang.srt.mem_cache.radix_cache import RadixCache, TokenIds, TreeNode, as_tokens
from sglang.srt.utils.errors import ConfigError

# Slots set aside behind one request, at most, and as a share of what is free.
_MAX_ROOM = 1024
_ROOM_SHARE = 4
# Slots evicted beyond what is needed at once.
_EVICTED_ROOM = 64


@dataclass(slots=True, eq=False)
class RequestCache:
    """The cache of one running request; made by `KVCacheManager.open`, changed only by the manager.

    `length` tokens have a slot. The first `cached_len` slots (whole pages) belong to the tree and
    are locked; the others belong to this handle, with the unused end of its last page.
    """

    row: int
    length: int
    cached_len: int
    num_cached_at_open: int
    node: TreeNode
    # First position whose slot was replaced since the caller last wrote the row's device table;
    # the caller rewrites the row from there and sets it back to None.
    table_dirty_from: int | None
    # int32; slots of whole pages, so it is filled up to `length` rounded up to the page size.
    buffer: SlotArray
    max_length: int  # what the request may grow to, as far as its owner knows
    # Free pages set aside behind the last one, so that what the request appends lies in one run.
    room: range = range(0)
    # int32; whole pages of encoder tokens, this handle's own: never in the tree.
    encoder: SlotArray = field(default_factory=lambda: np.empty(0, dtype=np.int32))

    @property
    def slots(self) -> SlotArray:
        """Slots of positions `0 .. length-1`, int32 [length]; a view, valid until the next call."""
        return self.buffer[: self.length]

    def append_pages(self, start: int, slots: SlotArray) -> None:
        """Put the slots of whole pages at position `start`, growing the buffer by doubling."""
        end = start + len(slots)
        if end > len(self.buffer):
            grown = np.empty(max(end, 2 * len(self.buffer)), dtype=np.int32)
            grown[:start] = self.buffer[:start]
            self.buffer = grown
        self.buffer[start:end] = slots


class KVCacheManager:
    """Hands out rows and KV slots, and shares computed prefixes between requests.

    Args:
        num_slots: slots of the device pool, the padding page included; an incomplete last page
            is not used.
        page_size: slots per page. Prefixes are shared in whole pages.
        max_requests: rows, the most requests that can be open at once.
        enable_prefix_cache: False: nothing is shared, `close` frees everything.
        eviction_policy: which unused prefix goes first: "lru" or "lfu".

    Raises:
        ConfigError: a value is out of range.
    """

    def __init__(
        self,
        num_slots: int,
        page_size: int,
        max_requests: int,
        enable_prefix_cache: bool = True,
        eviction_policy: str = "lru",
    ) -> None:
        if page_size < 1:
            raise ConfigError(f"page_size={page_size} must be at least 1")
        if max_requests < 1:
            raise ConfigError(f"max_requests={max_requests} must be at least 1")
        self.page_size = page_size
        self.max_requests = max_requests
        self.enable_prefix_cache = enable_prefix_cache
        self.num_evicted = 0  # slots taken from the tree since the start, for metrics
        self._allocator = PageAllocator(num_slots // page_size, page_size)
        self._tree = RadixCache(page_size, eviction_policy)
        self._free_rows = list(range(max_requests - 1, -1, -1))
        self._handles: dict[int, RequestCache] = {}  # by row
        self._num_room_pages = 0  # free pages set aside by all handles

    @property
    def capacity(self) -> int:
        """Slots that can be handed out."""
        return (self._allocator.num_pages - 1) * self.page_size

    @property
    def num_free(self) -> int:
        """Slots that hold nothing, the rooms of open requests among them."""
        return (self._allocator.num_free + self._num_room_pages) * self.page_size

    @property
    def num_cached(self) -> int:
        """Slots in the tree, locked or not."""
        return self._tree.total_size

    @property
    def num_evictable(self) -> int:
        """Slots in the tree that no open request uses."""
        return self._tree.evictable_size

    @property
    def num_used(self) -> int:
        """Slots that open requests hold: their own and the locked part of the tree."""
        return self.capacity - self.num_available()

    @property
    def num_open(self) -> int:
        """Open requests."""
        return len(self._handles)

    def num_available(self) -> int:
        """Slots that are free or evictable."""
        return self.num_free + self._tree.evictable_size

    def whole_pages(self, num_tokens: int) -> int:
        """Slots that so many tokens take."""
        return -(-num_tokens // self.page_size) * self.page_size

    def match(
        self, token_ids: TokenIds, extra_key: str | None = None, limit: int | None = None
    ) -> int:
        """Leading tokens that are cached: whole pages, at most `limit`. Counts as an access.

        An int64 array costs less than a list, which is converted on each call.
        """
        if not self.enable_prefix_cache:
            return 0
        return self._tree.match(as_tokens(_head(token_ids, limit)), extra_key)

    def open(
        self,
        token_ids: TokenIds,
        extra_key: str | None = None,
        limit: int | None = None,
        max_length: int = 0,
    ) -> RequestCache | None:
        """Take a row and lock the cached prefix of `token_ids` (at most `limit` tokens).

        `max_length`: tokens that the request may grow to; neighbouring slots are set aside for
        them while nobody else needs those. The handle starts with `length == cached_len`. None, and nothing changed, without a row.
        """
        if not self._free_rows:
            return None
        known = as_tokens(_head(token_ids, limit if self.enable_prefix_cache else 0))
        node, cached = self._tree.acquire(known, extra_key)
        row = self._free_rows.pop()
        num_cached = len(cached)
        handle = RequestCache(
            row, num_cached, num_cached, num_cached, node, None, cached, max_length
        )
        self._handles[row] = handle
        return handle

    def slots_needed(self, handle: RequestCache, num_tokens: int) -> int:
        """Slots, in whole pages, that `extend(handle, num_tokens)` would newly take."""
        return self.whole_pages(handle.length + num_tokens) - self.whole_pages(handle.length)

    def can_extend(self, handle: RequestCache, num_tokens: int) -> bool:
        """Whether `extend(handle, num_tokens)` would succeed now."""
        return self.slots_needed(handle, num_tokens) <= self.num_available()

    def extend(self, handle: RequestCache, num_tokens: int) -> SlotArray | None:
        """Slots of the next `num_tokens` positions, int32 [num_tokens], evicting as needed.

        None, and nothing changed, when they cannot be had.

        Raises:
            ValueError: `num_tokens` is negative.
        """
        self._require_open(handle)
        if num_tokens < 0:
            raise ValueError(f"cannot extend by {num_tokens} tokens; truncate() makes shorter")
        start = handle.length
        end = start + num_tokens
        reserved = self.whole_pages(start)
        if end > reserved:
            pages = self._take_pages(handle, (self.whole_pages(end) - reserved) // self.page_size)
            if pages is None:
                return None
            handle.append_pages(reserved, self._allocator.slots_of(pages))
        handle.length = end
        return handle.buffer[start:end].copy()

    def extend_many(self, handles: Sequence[RequestCache]) -> SlotArray | None:
        """One more token for each of these (distinct, open) handles, int32 [len(handles)].

        The decode step: one allocation for all of them. None, and nothing changed, when the
        slots cannot be had.
        """
        page_size = self.page_size
        full = [handle for handle in handles if handle.length % page_size == 0]
        if len(full) * page_size > self.num_available():
            return None
        # Those with room first: the others may make them give back what is left of it.
        for handle in sorted(full, key=lambda handle: not handle.room):
            if page_size == 1 and handle.room and handle.length < len(handle.buffer):
                # Nearly every row of nearly every step: by hand.
                handle.buffer[handle.length] = handle.room.start
                handle.room = handle.room[1:]
                self._num_room_pages -= 1
                continue
            pages = self._take_pages(handle, 1)
            assert pages is not None, "counted above"
            handle.append_pages(handle.length, self._allocator.slots_of(pages))
        taken = np.array([handle.buffer[handle.length] for handle in handles], dtype=np.int32)
        for handle in handles:
            handle.length += 1
        return taken

    def take_encoder(self, handle: RequestCache, num_tokens: int) -> bool:
        """Give a request slots for `num_tokens` encoder tokens (`handle.encoder`, in whole pages), evicting as needed; `close` frees them.

        False, and nothing changed, when they cannot be had.

        Raises:
            ValueError: it has some already.
        """
        self._require_open(handle)
        if len(handle.encoder):
            raise ValueError(f"row {handle.row} has {len(handle.encoder)} encoder slots already")
        size = self.whole_pages(num_tokens)
        if size > self.num_available():
            return False
        self._make_free(size // self.page_size)
        pages = self._allocator.alloc_pages(size // self.page_size)
        assert pages is not None, "made free above"
        handle.encoder = self._allocator.slots_of(pages)
        return True

    def truncate(self, handle: RequestCache, num_tokens: int) -> None:
        """Keep the first `num_tokens` positions and give back the pages beyond them.

        Raises:
            ValueError: `num_tokens` is outside `cached_len .. length`.
        """
        self._require_open(handle)
        if not handle.cached_len <= num_tokens <= handle.length:
            raise ValueError(
                f"cannot truncate to {num_tokens} tokens: must be within "
                f"{handle.cached_len} (shared through the tree) .. {handle.length} (allocated)"
            )
        self._release_room(handle)
        self._free_slots(handle, self.whole_pages(num_tokens), self.whole_pages(handle.length))
        handle.length = num_tokens

    def commit_prefix(self, handle: RequestCache, token_ids: TokenIds) -> None:
        """Share the full pages of the first `len(token_ids)` positions, which are computed.

        Where the tree already holds these tokens, the handle's duplicates are freed, its slots
        are replaced by the tree's and `handle.table_dirty_from` tells the first such position.
        A step in flight may still read the freed slots: only a later step can overwrite them.

        Raises:
            ValueError: `token_ids` is longer than the handle.
        """
        self._require_open(handle)
        if len(token_ids) > handle.length:
            raise ValueError(
                f"{len(token_ids)} computed tokens but only {handle.length} have a slot"
            )
        start = handle.cached_len
        end = len(token_ids) - len(token_ids) % self.page_size
        if end <= start or not self.enable_prefix_cache:
            return
        tokens = as_tokens(token_ids[start:end])
        node, shared = self._tree.insert(handle.node, tokens, handle.buffer[start:end])
        self._tree.lock(node, until=handle.node)
        handle.node = node
        handle.cached_len = end
        if len(shared):
            self._free_slots(handle, start, start + len(shared))
            handle.buffer[start : start + len(shared)] = shared
            if handle.table_dirty_from is None:
                handle.table_dirty_from = start

    def withdraw(self, handle: RequestCache, start: int) -> None:
        """No request that opens from now on shares this one's tokens from `start` (a page border) on.

        For entries that turn out wrong. Nor is what others added behind them shared: they were
        computed from them. Pages that no open request holds become free now, the others with the
        last of their holders, who keep them until then.
        """
        self._require_open(handle)
        self._free_of_tree(self._tree.withdraw(handle.node, start))

    def close(self, handle: RequestCache, token_ids: TokenIds, insert: bool = True) -> None:
        """Give back the row and every slot, those of a step in flight included.

        With `insert`, the full pages of the computed `token_ids` stay in the tree, evictable, but
        not what `withdraw` has hidden.
        """
        self._require_open(handle)
        if insert:
            self.commit_prefix(handle, token_ids)
        self._release_room(handle)
        self._free_slots(handle, handle.cached_len, self.whole_pages(handle.length))
        self._allocator.free_pages(self._allocator.pages_of(handle.encoder))
        self._free_of_tree(self._tree.unlock(handle.node))
        del self._handles[handle.row]
        self._free_rows.append(handle.row)

    def flush(self) -> bool:
        """Empty the tree. False, and nothing changed, while requests are open."""
        if self._handles:
            return False
        self._free_of_tree(self._tree.clear())
        return True

    def check(self) -> None:
        """Audit; costs time in proportion to the pool.

        Raises:
            AssertionError: a page is not exactly one of free, in the tree, owned by one handle;
                or lock counts, sizes, rows or the locked slots of a handle are wrong.
        """
        self._allocator.check()
        self._tree.check(handle.node for handle in self._handles.values())
        rows = sorted([*self._free_rows, *self._handles])
        if rows != list(range(self.max_requests)):
            raise AssertionError(f"rows lost or doubled: {rows}")
        owned = [self._tree.all_slots()]
        for handle in self._handles.values():
            if not np.array_equal(
                self._tree.path_slots(handle.node), handle.buffer[: handle.cached_len]
            ):
                raise AssertionError(f"row {handle.row}: cached slots differ from the tree's")
            owned.append(handle.buffer[handle.cached_len : self.whole_pages(handle.length)])
            owned.append(handle.encoder)
        slots = np.concatenate(owned)
        rooms = [page for handle in self._handles.values() for page in handle.room]
        if len(rooms) != self._num_room_pages:
            raise AssertionError(f"{len(rooms)} pages in rooms, counted {self._num_room_pages}")
        pages = self._allocator.pages_of(slots)
        if not np.array_equal(self._allocator.slots_of(pages), slots):
            raise AssertionError("slots in use are not whole pages")
        counts = np.bincount(
            np.concatenate([pages, rooms, self._allocator.free_list()]).astype(np.int64),
            minlength=self._allocator.num_pages,
        )
        wrong = np.flatnonzero(counts[1:] != 1) + 1
        if counts[0] or len(wrong):
            raise AssertionError(
                f"pages lost or doubled: {wrong.tolist()}; padding page used {counts[0]} times"
            )

    def _take_pages(self, handle: RequestCache, num_pages: int) -> SlotArray | None:
        """Pages from the handle's room, then free ones, then evicted ones; None if they do not suffice."""
        if num_pages <= len(handle.room):  # most decode steps
            taken, handle.room = handle.room[:num_pages], handle.room[num_pages:]
            self._num_room_pages -= num_pages
            return np.arange(taken.start, taken.stop, dtype=np.int32)
        if num_pages * self.page_size > self.num_available():
            return None
        room = np.arange(handle.room.start, handle.room.stop, dtype=np.int32)
        self._num_room_pages -= len(room)
        handle.room = range(0)
        missing = num_pages - len(room)
        self._make_free(missing)
        rest = self._allocator.num_free - missing
        wish = min(self._room_wish(handle, num_pages), rest // _ROOM_SHARE)
        pages = self._allocator.alloc_pages(missing + wish)
        assert pages is not None, "made free above"
        self._set_aside(handle, pages[missing - 1 :])
        return np.concatenate([room, pages[:missing]])

    def _make_free(self, num_pages: int) -> None:
        """At least `num_pages` on the free list; the caller knows that they can be had."""
        if self._allocator.num_free < num_pages and self._num_room_pages:
            for handle in self._handles.values():
                self._release_room(handle)
        missing = (num_pages - self._allocator.num_free) * self.page_size
        if missing > 0:
            # Some more, so that the next tokens of this request find neighbouring slots, too.
            extra = _EVICTED_ROOM if self._tree.evictable_size > 8 * _EVICTED_ROOM else 0
            evicted = self._tree.evict(min(missing + extra, self._tree.evictable_size))
            self.num_evicted += len(evicted)
            self._free_of_tree(evicted)

    def _room_wish(self, handle: RequestCache, num_pages: int) -> int:
        """Pages worth setting aside once `num_pages` more are in use."""
        left = handle.max_length - self.whole_pages(handle.length) - num_pages * self.page_size
        return min(max(left, 0), _MAX_ROOM) // self.page_size

    def _set_aside(self, handle: RequestCache, pages: SlotArray) -> None:
        """Keep the run that follows pages[0], which is in use, as the room; give back the rest."""
        breaks = np.flatnonzero(np.diff(pages) != 1)
        length = int(breaks[0]) + 1 if len(breaks) else len(pages)
        self._allocator.free_pages(pages[length:])
        handle.room = range(int(pages[0]) + 1, int(pages[0]) + length)
        self._num_room_pages += len(handle.room)

    def _release_room(self, handle: RequestCache) -> None:
        self._allocator.free_pages(np.array(handle.room, dtype=np.int32))
        self._num_room_pages -= len(handle.room)
        handle.room = range(0)

    def _free_slots(self, handle: RequestCache, start: int, end: int) -> None:
        if end > start:
            self._allocator.free_pages(self._allocator.pages_of(handle.buffer[start:end]))

    def _free_of_tree(self, slots: SlotArray) -> None:
        """Free what has left the tree."""
        self._allocator.free_pages(self._allocator.pages_of(slots))

    def _require_open(self, handle: RequestCache) -> None:
        if self._handles.get(handle.row) is not handle:
            raise AssertionError(f"the handle of row {handle.row} is closed")


def _head(token_ids: TokenIds, limit: int | None) -> TokenIds:
    return token_ids if limit is None else token_ids[: max(limit, 0)]
