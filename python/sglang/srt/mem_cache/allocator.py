"""Free list of KV pages, on the host.

A page is `page_size` neighbouring slots: slot = page * page_size + offset. Page 0 is padding:
rows that only fill up a batch write there, so it is never handed out.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sglang.srt.utils.errors import ConfigError

SlotArray = npt.NDArray[np.int32]  # slots or pages

# Pages freed between two sorts of the stack, at least; a sixteenth of a large pool.
_SORT_AFTER = 1024


class PageAllocator:
    """Stack of free pages; the pages freed last are handed out first, in the order of their numbers where that is cheap.

    Neighbouring slots are worth having: a backend reads a run of slots in place. So pages freed
    together come back in the same order, and the stack is sorted now and then.

    Args:
        num_pages: all pages of the pool, the padding page included.
        page_size: slots per page.

    Raises:
        ConfigError: there is no page besides the padding page, or `page_size` is below 1.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        if page_size < 1:
            raise ConfigError(f"page_size={page_size} must be at least 1")
        if num_pages < 2:
            raise ConfigError(
                f"{num_pages} KV cache pages of {page_size} slots leave none besides the padding "
                "page; give the cache more tokens or use a smaller page_size"
            )
        self.num_pages = num_pages
        self.page_size = page_size
        self._offsets = np.arange(page_size, dtype=np.int32)
        # Top of the stack at the end, so that a fresh pool hands out 1, 2, 3, ...
        self._stack: SlotArray = np.arange(num_pages - 1, 0, -1, dtype=np.int32)
        self._num_free = num_pages - 1
        self._num_freed = 0  # since the stack was sorted
        self._is_free = np.ones(num_pages, dtype=np.bool_)
        self._is_free[0] = False

    @property
    def num_free(self) -> int:
        """Free pages."""
        return self._num_free

    def alloc_pages(self, num_pages: int) -> SlotArray | None:
        """`num_pages` pages, int32 [num_pages], or None (nothing changed) if there are fewer."""
        rest = self._num_free - num_pages
        if rest < 0:
            return None
        if self._num_freed > max(_SORT_AFTER, self.num_pages // 16):
            self._stack[: self._num_free] = np.sort(self._stack[: self._num_free])[::-1]
            self._num_freed = 0
        pages = self._stack[rest : self._num_free][::-1].copy()
        self._num_free = rest
        self._is_free[pages] = False
        return pages

    def free_pages(self, pages: SlotArray) -> None:
        """Take pages back.

        Raises:
            AssertionError: a page is already free or is the padding page.
        """
        if not len(pages):
            return
        if self._is_free[pages].any() or not pages.all():
            raise AssertionError(f"pages freed twice or padding page freed: {pages.tolist()}")
        end = self._num_free + len(pages)
        self._stack[self._num_free : end] = pages[::-1]
        self._num_free = end
        self._num_freed += len(pages)
        self._is_free[pages] = True

    def slots_of(self, pages: SlotArray) -> SlotArray:
        """Slots of whole pages, int32 [len(pages) * page_size], pages in the given order."""
        if self.page_size == 1:
            return pages
        return (pages[:, None] * self.page_size + self._offsets).reshape(-1)

    def pages_of(self, slots: SlotArray) -> SlotArray:
        """Pages of a page-aligned run of slots: the inverse of `slots_of`."""
        if self.page_size == 1:
            return slots
        return slots[:: self.page_size] // self.page_size

    def free_list(self) -> SlotArray:
        """Copy of the free pages, in no particular order (for audits)."""
        return self._stack[: self._num_free].copy()

    def check(self) -> None:
        """Audit of the free list.

        Raises:
            AssertionError: the stack and the flags disagree.
        """
        flagged = np.flatnonzero(self._is_free)
        if not np.array_equal(np.sort(self.free_list()), flagged):
            raise AssertionError("free pages: the stack and the flags disagree")
