"""The order of the waiting queue and the estimate of how much memory running requests will still need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from sglang.srt.environ import envs
from sglang.srt.managers.request import Req

if TYPE_CHECKING:
    from sglang.srt.mem_cache.kv_cache_manager import KVCacheManager

# A planning step looks at no more waiting requests than this, so its cost does not grow with the queue.
MAX_CANDIDATES = 128
# A shared prefix shorter than this is cheaper to compute twice than to wait for.
MIN_SHARED_PREFIX = 32


class WaitingQueue:
    """Requests that have no row yet, in order of arrival; retracted requests come first."""

    def __init__(self) -> None:
        self._by_rid: dict[str, Req] = {}

    def __len__(self) -> int:
        return len(self._by_rid)

    def __iter__(self) -> Iterator[Req]:
        return iter(self._by_rid.values())

    def append(self, req: Req) -> None:
        self._by_rid[req.rid] = req

    def prepend(self, reqs: Iterable[Req]) -> None:
        front = {req.rid: req for req in reqs}
        self._by_rid = front | self._by_rid

    def remove(self, req: Req) -> None:
        del self._by_rid[req.rid]

    def oldest(self) -> Req | None:
        """Who has waited longest for a first row."""
        return next((req for req in self._by_rid.values() if not req.retractions), None)

    def candidates(self, policy: str, cache: KVCacheManager) -> list[Req]:
        """The requests to look at in this step, best first, by `fcfs` or `lpm` (longest cached prefix first)."""
        head = list(islice(self._by_rid.values(), MAX_CANDIDATES))
        if policy == "lpm" and len(head) > 1:
            head.sort(
                key=lambda req: -cached_prefix_len(req, cache)
            )  # stable: ties keep arrival order
        return head


def cached_prefix_len(req: Req, cache: KVCacheManager) -> int:
    return cache.match(req.fill_keys(), req.extra_key, req.prefix_limit())


class SharedPrefixes:
    """Prompts that are being computed right now, so that requests which begin alike can wait a step for them."""

    def __init__(self) -> None:
        self._by_head: dict[tuple, Req] = {}

    def add(self, req: Req) -> None:
        self._by_head.setdefault(self._key(req), req)

    def discard(self, req: Req) -> None:
        key = self._key(req)
        if self._by_head.get(key) is req:
            del self._by_head[key]

    def worth_waiting(self, req: Req, cache: KVCacheManager) -> bool:
        """True when a prompt in progress will leave behind a longer prefix than the cache has now."""
        other = self._by_head.get(self._key(req))
        if other is None or other is req or len(req.prompt_ids) < MIN_SHARED_PREFIX:
            return False
        # Prompts are compared; the limit of a retracted request counts its outputs too.
        limit = min(req.prefix_limit(), req.prompt_len, other.prompt_len)
        mine, theirs = req.key_array[:limit], other.key_array[:limit]
        differs = (mine != theirs).nonzero()[0]
        common = int(differs[0]) if len(differs) else limit
        return common - cached_prefix_len(req, cache) >= MIN_SHARED_PREFIX

    @staticmethod
    def _key(req: Req) -> tuple:
        return (req.extra_key, *req.prompt_keys[:MIN_SHARED_PREFIX])


class NewTokenRatio:
    """The share of their remaining `max_new_tokens` that running requests are expected to use.

    Starts careful, decays while all goes well, jumps back up when requests had to be retracted.
    """

    def __init__(self, conservativeness: float) -> None:
        self._initial = min(envs.SGLANG_INIT_NEW_TOKEN_RATIO.get() * conservativeness, 1.0)
        self._minimum = self._initial * envs.SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR.get()
        steps = envs.SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS.get()
        self._decay = (self._initial - self._minimum) / steps
        self._clip = envs.SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION.get()
        self._margin = envs.SGLANG_RETRACT_DECODE_STEPS.get()
        self.value = self._initial

    def decay(self) -> None:
        self.value = max(self.value - self._decay, self._minimum)

    def reset(self) -> None:
        self.value = self._initial

    def reserve(self, req: Req) -> int:
        """Slots that `req` is expected to need for its outputs from now on."""
        return int(min(req.num_remaining, self._clip) * self.value)

    def after_retraction(self, running: list[Req]) -> None:
        """Fit the ratio to what the surviving requests have really produced."""
        produced = sum(len(req.output_ids) for req in running)
        promised = sum(req.max_new_tokens for req in running) + 1
        self.value = min(1.0, (produced + self._margin * len(running)) / promised)
