"""Radix tree from token ids to KV slots: which prefixes are cached, and which may go.

Keys are runs of token ids in whole pages; each extra key (adapter, tenant, salt) has a tree of
its own. The tree owns the slots it holds but not the allocator: evicted slots are returned.
Each operation is one tick of a counter, and last access means that tick, not wall clock time.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sglang.srt.mem_cache.allocator import SlotArray
from sglang.srt.utils.errors import ConfigError

TokenArray = npt.NDArray[np.int64]
TokenIds: TypeAlias = "list[int] | TokenArray"


class TreeNode:
    """A run of tokens below its parent, and where their keys and values are.

    `token_ids` alone gives the length, so that a node whose keys and values are elsewhere than
    on the device can exist without `slots`. Roots have no parent and no tokens.
    """

    __slots__ = (
        "children",
        "extra_key",
        "hit_count",
        "is_queued",
        "is_withdrawn",
        "last_access",
        "lock_ref",
        "parent",
        "serial",
        "slots",
        "token_ids",
    )

    def __init__(
        self,
        serial: int,
        parent: TreeNode | None,
        extra_key: str | None,
        token_ids: TokenArray,
        slots: SlotArray,
    ) -> None:
        self.serial = serial
        self.parent = parent
        self.extra_key = extra_key
        self.token_ids = token_ids
        self.slots = slots
        self.children: dict[bytes, TreeNode] = {}  # by RadixCache._key
        self.lock_ref = 0  # open requests at this node or below
        self.hit_count = 0  # requests that reused it
        self.last_access = 0
        self.is_queued = False  # has its one entry in the eviction queue
        self.is_withdrawn = False  # no match finds it, nor what is below; gone with its last lock

    @property
    def is_evictable(self) -> bool:
        """A leaf that nobody uses; roots hold nothing."""
        return not self.lock_ref and not self.children and self.parent is not None


class RadixCache:
    """Prefix cache with locking and eviction.

    Locking a node locks its path, so whatever is unlocked can be evicted, leaf by leaf:
    `evictable_size` is exact.

    Args:
        page_size: tokens per page.
        eviction_policy: "lru" (least recently used first) or "lfu" (least often reused first,
            then least recently).

    Raises:
        ConfigError: the policy is unknown.
    """

    def __init__(self, page_size: int, eviction_policy: str = "lru") -> None:
        if eviction_policy not in _PRIORITIES:
            raise ConfigError(
                f"eviction policy {eviction_policy!r} is unknown; use one of {list(_PRIORITIES)}"
            )
        self.page_size = page_size
        self._priority = _PRIORITIES[eviction_policy]
        self._roots: dict[str | None, TreeNode] = {}
        self._total_size = 0
        self._evictable_size = 0
        self._clock = 0
        self._num_created = 0
        # Entries (priority, serial, node), at most one per node. Priorities only grow, so an
        # entry may be out of date (too low, or its node locked or grown): that shows when it
        # gets to the front, and costs one step per access then instead of a search now.
        self._queue: list[tuple[Any, int, TreeNode]] = []

    @property
    def total_size(self) -> int:
        """Tokens in the tree."""
        return self._total_size

    @property
    def evictable_size(self) -> int:
        """Tokens in unlocked nodes."""
        return self._evictable_size

    @property
    def protected_size(self) -> int:
        """Tokens in locked nodes."""
        return self._total_size - self._evictable_size

    def match(self, token_ids: TokenArray, extra_key: str | None = None) -> int:
        """Leading tokens (whole pages) that are cached; refreshes their last access only."""
        self._clock += 1
        root = self._roots.get(extra_key)
        if root is None:
            return 0
        return sum(map(len, self._descend(root, token_ids, claim=False)[1]))

    def acquire(
        self, token_ids: TokenArray, extra_key: str | None = None
    ) -> tuple[TreeNode, SlotArray]:
        """Lock the cached prefix: its last node and a copy of its slots, int32 [matched].

        The caller owes one `unlock`, even for an empty prefix.
        """
        self._clock += 1
        root = self._roots.get(extra_key)
        if root is None:
            root = self._roots[extra_key] = self._make_node(None, extra_key, _NO_TOKENS, _NO_SLOTS)
        node, pieces = self._descend(root, token_ids, claim=True)
        self.lock(node)
        return node, _join(pieces)

    def insert(
        self, node: TreeNode, token_ids: TokenArray, slots: SlotArray
    ) -> tuple[TreeNode, SlotArray]:
        """Add whole pages of tokens below a locked node.

        Tokens that are already there keep the tree's slots. For the others the tree becomes the
        owner of the given slots (arrays are copied).

        Returns:
            The last node, not yet locked, and the tree's slots of the leading tokens that it
            already had: the caller still owns as many of the slots it gave.
        """
        if len(token_ids) % self.page_size or len(token_ids) != len(slots):
            raise AssertionError(
                f"{len(token_ids)} tokens and {len(slots)} slots are not whole pages"
            )
        self._clock += 1
        node, pieces = self._descend(node, token_ids, claim=True)
        shared = _join(pieces)
        if len(shared) < len(token_ids):
            rest = slice(len(shared), None)
            node = self._add_leaf(node, token_ids[rest].copy(), slots[rest].copy())
        return node, shared

    def lock(self, node: TreeNode, until: TreeNode | None = None) -> None:
        """Keep the path up to `until` (exclusive; None: the whole path) from eviction."""
        step: TreeNode | None = node
        while step is not until and step is not None:
            if step.lock_ref == 0:
                self._evictable_size -= len(step.token_ids)
            step.lock_ref += 1
            step = step.parent

    def unlock(self, node: TreeNode) -> SlotArray:
        """Undo one lock of the whole path; counts as an access.

        Slots, int32, of what had been withdrawn and is now held by nobody: it left the tree.
        """
        self._clock += 1
        withdrawn: TreeNode | None = None  # the uppermost
        step: TreeNode | None = node
        while step is not None:
            withdrawn = step if step.is_withdrawn else withdrawn
            step.lock_ref -= 1
            step.last_access = self._clock
            if step.lock_ref == 0:
                self._evictable_size += len(step.token_ids)
                self._settle(step)
            step = step.parent
        return _NO_SLOTS if withdrawn is None else self._prune(withdrawn)

    def withdraw(self, node: TreeNode, start: int) -> SlotArray:
        """Hide the path of a locked node from position `start` (a page border) on, and all below.

        What nobody has locked leaves the tree at once: its slots, int32. The rest keeps its place,
        so that its holders may go on and even add to it, but no match finds it any more.
        """
        path = [node]
        while path[-1].parent is not None:
            path.append(path[-1].parent)
        for step in reversed(path):
            if step.is_withdrawn:  # all that follows is hidden already
                break
            if start < len(step.token_ids):
                if start > 0:
                    self._split(step, start)
                parent = _parent_of(step)
                del parent.children[self._key(step)]
                step.is_withdrawn = True
                parent.children[self._key(step)] = step
                return self._prune(step)
            start -= len(step.token_ids)
        return _NO_SLOTS

    def evict(self, num_tokens: int) -> SlotArray:
        """Drop at least `num_tokens` unlocked tokens, or all; their slots, int32, whole pages.

        Only as much of the last leaf is cut off as is needed: the rest stays a usable prefix.
        """
        freed: list[SlotArray] = []
        missing = -(-num_tokens // self.page_size) * self.page_size
        while missing > 0 and self._queue:
            priority, serial, node = self._queue[0]
            current = self._priority(node)
            if not node.is_evictable:
                heapq.heappop(self._queue)
                node.is_queued = False
            elif current != priority:
                heapq.heapreplace(self._queue, (current, serial, node))
            else:
                cut = self._cut_tail(node, missing)
                missing -= len(cut)
                freed.append(cut)
        return _join(freed)

    def clear(self) -> SlotArray:
        """Forget everything; all slots, int32 [total_size]. Nothing may be locked."""
        if self.protected_size or any(root.lock_ref for root in self._roots.values()):
            raise AssertionError("the tree is in use and cannot be cleared")
        slots = self.all_slots()
        self._roots.clear()
        self._queue.clear()
        self._total_size = self._evictable_size = 0
        return slots

    def all_slots(self) -> SlotArray:
        """Slots of all nodes, int32 [total_size] (for audits)."""
        return _join([node.slots for node in self._iter_nodes()])

    def path_slots(self, node: TreeNode) -> SlotArray:
        """Slots from the root to the end of `node`, int32 (for audits)."""
        pieces = []
        step: TreeNode | None = node
        while step is not None:
            pieces.append(step.slots)
            step = step.parent
        return _join(pieces[::-1])

    def check(self, lock_holders: Iterable[TreeNode]) -> None:
        """Audit of structure, sizes, lock counts and eviction queue.

        Args:
            lock_holders: the node of each lock that is held, repeated if locked repeatedly.

        Raises:
            AssertionError: with the first fault found.
        """
        held = Counter(node.serial for node in lock_holders)
        queued = Counter(serial for _, serial, _ in self._queue)
        total = evictable = num_locks = 0
        for node in self._iter_nodes():
            self._check_node(node)
            below = sum(child.lock_ref for child in node.children.values())
            _require(node.lock_ref == held[node.serial] + below, "lock count", node)
            _require(queued[node.serial] == node.is_queued, "queue flag", node)
            _require(node.is_queued or not node.is_evictable, "leaf not queued", node)
            num_locks += held[node.serial]
            total += len(node.token_ids)
            evictable += 0 if node.lock_ref else len(node.token_ids)
        if num_locks != held.total():
            raise AssertionError("a lock is held on a node that is not in the tree")
        if (total, evictable) != (self._total_size, self._evictable_size):
            raise AssertionError(
                f"sizes: counted {total} total, {evictable} evictable; "
                f"kept {self._total_size}, {self._evictable_size}"
            )

    def _descend(
        self, node: TreeNode, token_ids: TokenArray, claim: bool
    ) -> tuple[TreeNode, list[SlotArray]]:
        """Follow the tokens down from `node`: the last node and the slots along the way.

        With `claim` the match counts as use, and a node that matches in part is split so that
        the result ends at a node; without, the last piece may be a part of a node.
        """
        page = self.page_size
        pieces: list[SlotArray] = []
        start = 0
        while len(token_ids) - start >= page:
            child = node.children.get(token_ids[start : start + page].tobytes())
            if child is None:
                break
            common = _common_len(child.token_ids, token_ids[start:])
            common -= common % page
            if claim:
                if common < len(child.token_ids):
                    child = self._split(child, common)
                child.hit_count += 1
            child.last_access = self._clock
            pieces.append(child.slots[:common])
            start += common
            if common < len(child.token_ids):
                break
            node = child
        return node, pieces

    def _split(self, node: TreeNode, at: int) -> TreeNode:
        """Put a new node with the first `at` tokens above `node`, which keeps the others.

        The lower part keeps the identity, so handles that end there stay right.
        """
        parent = _parent_of(node)
        upper = self._make_node(
            parent, node.extra_key, _compact(node.token_ids[:at]), _compact(node.slots[:at])
        )
        upper.lock_ref = node.lock_ref
        upper.hit_count = node.hit_count
        upper.last_access = node.last_access
        parent.children[self._key(upper)] = upper
        node.token_ids = _compact(node.token_ids[at:])
        node.slots = _compact(node.slots[at:])
        node.parent = upper
        upper.children[self._key(node)] = node
        return upper

    def _add_leaf(self, parent: TreeNode, token_ids: TokenArray, slots: SlotArray) -> TreeNode:
        leaf = self._make_node(parent, parent.extra_key, token_ids, slots)
        parent.children[self._key(leaf)] = leaf
        self._total_size += len(token_ids)
        self._evictable_size += len(token_ids)
        self._settle(leaf)
        return leaf

    def _cut_tail(self, leaf: TreeNode, num_tokens: int) -> SlotArray:
        """Take up to `num_tokens` off the end of the leaf at the front of the queue."""
        keep = max(len(leaf.token_ids) - num_tokens, 0)
        cut = leaf.slots[keep:]
        self._total_size -= len(cut)
        self._evictable_size -= len(cut)
        if keep:
            leaf.token_ids = _compact(leaf.token_ids[:keep])
            leaf.slots = _compact(leaf.slots[:keep])
            return cut
        heapq.heappop(self._queue)
        parent = _parent_of(leaf)
        del parent.children[self._key(leaf)]
        self._settle(parent)
        return cut

    def _prune(self, top: TreeNode) -> SlotArray:
        """Take what nobody has locked out of the tree, of `top` and all below; its slots."""
        nodes = [top]
        for node in nodes:  # grows: parents before children
            nodes += node.children.values()
        unused = [node for node in nodes if not node.lock_ref]
        for node in reversed(unused):
            parent = _parent_of(node)
            del parent.children[self._key(node)]
            self._total_size -= len(node.token_ids)
            self._evictable_size -= len(node.token_ids)
            node.parent = None  # what the eviction queue has of it counts no more
            if node is top:
                self._settle(parent)
        return _join([node.slots for node in unused])

    def _settle(self, node: TreeNode) -> None:
        """After `node` lost its last lock or a child: queue it, or drop it if an unused root."""
        if node.lock_ref or node.children:
            return
        if node.parent is None:
            del self._roots[node.extra_key]
        elif not node.is_queued:
            node.is_queued = True
            heapq.heappush(self._queue, (self._priority(node), node.serial, node))

    def _make_node(
        self,
        parent: TreeNode | None,
        extra_key: str | None,
        token_ids: TokenArray,
        slots: SlotArray,
    ) -> TreeNode:
        self._num_created += 1
        node = TreeNode(self._num_created, parent, extra_key, token_ids, slots)
        node.last_access = self._clock
        return node

    def _key(self, node: TreeNode) -> bytes:
        """What the parent knows it by: its first page, but something longer once it is withdrawn."""
        first_page = node.token_ids[: self.page_size].tobytes()
        return first_page + node.serial.to_bytes(8, "little") if node.is_withdrawn else first_page

    def _iter_nodes(self) -> Iterator[TreeNode]:
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def _check_node(self, node: TreeNode) -> None:
        length = len(node.token_ids)
        _require(len(node.slots) == length, "as many slots as tokens", node)
        if node.parent is None:
            _require(self._roots.get(node.extra_key) is node, "root by its extra key", node)
            _require(bool(node.children or node.lock_ref), "root is of use", node)
            _require(length == 0, "root is empty", node)
        else:
            _require(length > 0 and length % self.page_size == 0, "whole pages", node)
            _require(node.extra_key == node.parent.extra_key, "extra key of the parent", node)
        _require(bool(node.lock_ref) or not node.is_withdrawn, "withdrawn and unused", node)
        for key, child in node.children.items():
            _require(key == self._key(child), "child by its key", child)
            _require(child.parent is node, "parent link", child)


def as_tokens(token_ids: TokenIds) -> TokenArray:
    """Token ids as int64 [len]; an int64 array is passed through without a copy."""
    return np.asarray(token_ids, dtype=np.int64)


_NO_TOKENS: TokenArray = np.empty(0, dtype=np.int64)
_NO_SLOTS: SlotArray = np.empty(0, dtype=np.int32)


def _by_last_access(node: TreeNode) -> int:
    return node.last_access


def _by_hit_count(node: TreeNode) -> tuple[int, int]:
    return node.hit_count, node.last_access


_PRIORITIES: dict[str, Callable[[TreeNode], Any]] = {"lru": _by_last_access, "lfu": _by_hit_count}


def _common_len(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> int:
    """Length of the common beginning of two non-empty arrays."""
    size = min(len(left), len(right))
    differs = left[:size] != right[:size]
    first = int(differs.argmax())
    return first if differs[first] else size


def _compact(view: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy once less than half of the memory behind a view is used; amortised O(1) a token."""
    base = view.base
    return view.copy() if isinstance(base, np.ndarray) and 2 * view.size < base.size else view


def _join(pieces: list[SlotArray]) -> SlotArray:
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int32)


def _parent_of(node: TreeNode) -> TreeNode:
    if node.parent is None:
        raise AssertionError("a root has no parent")
    return node.parent


def _require(condition: bool, what: str, node: TreeNode) -> None:
    if not condition:
        raise AssertionError(f"radix tree node {node.serial}: {what}")
