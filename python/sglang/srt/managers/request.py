"""A request as the scheduler sees it: what was asked, what has been planned, what has been computed.

Positions count prompt and output tokens together. `num_planned` positions have KV slots and a launched or finished step;
`num_computed` of them are known to be finished. While a step is in flight the first is ahead of the second.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from sglang.srt.managers.io_struct import FinishReason, LogprobChunk, TokenizedGenerateReq
from sglang.srt.managers.step_plan import RowSetup, RowWork, SamplingSpec

if TYPE_CHECKING:
    from sglang.srt.constrained.base import GrammarMatcher
    from sglang.srt.mem_cache.kv_cache_manager import RequestCache
    from sglang.srt.multimodal.intake import RequestMedia


class Req:
    """One sample of one request, from intake to its last output."""

    def __init__(
        self, source: TokenizedGenerateReq, *, max_new_tokens: int, eos_ids: frozenset[int]
    ) -> None:
        self.rid = source.rid
        self.prompt_ids = source.input_ids
        self.output_ids: list[int] = []
        self.sampling_params = source.sampling_params
        self.max_new_tokens = max_new_tokens
        self.eos_ids = eos_ids
        self.stream = source.stream
        self.return_logprob = source.return_logprob
        self.logprob_start_len = source.logprob_start_len
        self.top_logprobs_num = source.top_logprobs_num
        self.token_ids_logprob = source.token_ids_logprob
        self.extra_key = source.extra_key
        self.media: RequestMedia | None = None
        self.received_ts = source.received_ts or time.monotonic()
        self.admitted_ts = 0.0

        self.cache: RequestCache | None = None
        self.grammar: GrammarMatcher | None = None
        self.num_planned = 0
        self.num_computed = 0
        self.num_outputs_at_open = 0  # outputs that a prefill after a retraction recomputes
        self.num_in_flight = 0  # launched steps that have not been committed
        self.needs_setup = True
        self.table_stale = True  # the device's row table does not hold our prefix yet
        self.cached_tokens = 0
        self.retractions = 0
        self.finish_reason: FinishReason | None = None
        self.abort_reason: FinishReason | None = None  # takes effect at the next commit
        self.is_tainted = False  # its KV entries may hold NaN
        self.trim_ids = 0
        self.trim_text: str | None = None

        self.num_sent = 0  # output ids already reported
        self.logprobs = LogprobChunk()
        self.input_logprobs_done = False
        self._key_array: np.ndarray | None = None

    @property
    def handle(self) -> RequestCache:
        """The row and slots of a request that holds them."""
        assert self.cache is not None, f"request {self.rid} has no row"
        return self.cache

    # --- lengths

    @property
    def prompt_len(self) -> int:
        return len(self.prompt_ids)

    @property
    def num_fill(self) -> int:
        """Positions a prefill has to compute: the prompt, and after a retraction the outputs too."""
        return len(self.prompt_ids) + self.num_outputs_at_open

    @property
    def is_prefilling(self) -> bool:
        """Some prompt (or recomputed) position has not been planned yet."""
        return self.num_planned < self.num_fill

    @property
    def num_outputs_planned(self) -> int:
        """Outputs that exist once everything launched has come back."""
        if self.is_prefilling:
            return len(self.output_ids)
        return self.num_planned - self.prompt_len + 1

    @property
    def num_remaining(self) -> int:
        return max(self.max_new_tokens - len(self.output_ids), 0)

    @property
    def num_encoder_tokens(self) -> int:
        """KV slots that the media take beside those of the tokens."""
        return 0 if self.media is None else self.media.num_encoder_tokens

    @property
    def prompt_keys(self) -> list[int]:
        """What the prefix cache compares: the prompt's ids, with digests of the content where media are."""
        return self.prompt_ids if self.media is None else self.media.keys

    @property
    def key_array(self) -> np.ndarray:
        """The prompt's keys as int64, for vectorised comparison."""
        if self._key_array is None:
            self._key_array = np.asarray(self.prompt_keys, dtype=np.int64)
        return self._key_array

    def fill_ids(self) -> list[int]:
        return self.prompt_ids + self.output_ids if self.output_ids else self.prompt_ids

    def fill_keys(self) -> list[int]:
        """Cache keys of everything that a prefill computes."""
        return self.prompt_keys + self.output_ids if self.output_ids else self.prompt_keys

    def computed_keys(self) -> list[int]:
        """Cache keys of the positions whose KV entries are valid, in order."""
        if self.num_computed <= len(self.prompt_ids):
            return self.prompt_keys[: self.num_computed]
        return self.prompt_keys + self.output_ids[: self.num_computed - len(self.prompt_ids)]

    def prefix_limit(self) -> int:
        """How many leading tokens may come from the prefix cache.

        At least one token must be computed, and every position whose logits a logprob needs.
        """
        limit = len(self.prompt_ids) + len(self.output_ids) - 1
        if self.wants_input_logprobs and not self.input_logprobs_done:
            limit = min(limit, max(self.logprob_start_len - 1, 0))
        return limit

    @property
    def wants_input_logprobs(self) -> bool:
        return self.return_logprob and 0 <= self.logprob_start_len < self.prompt_len

    # --- life cycle

    def open(self, cache: RequestCache) -> None:
        """A row and the cached prefix are ours; everything after it has to be computed."""
        self.cache = cache
        self.num_outputs_at_open = len(self.output_ids)
        self.num_planned = self.num_computed = cache.num_cached_at_open
        self.needs_setup = self.table_stale = True
        if self.retractions == 0:
            self.cached_tokens = cache.num_cached_at_open
            self.admitted_ts = time.monotonic()

    def reset_for_retraction(self) -> None:
        """The KV entries are gone; tokens and logprobs produced so far are kept."""
        self.cache = None
        self.num_planned = self.num_computed = 0
        self.retractions += 1
        if self.wants_input_logprobs and not self.input_logprobs_done:
            self.logprobs = LogprobChunk()  # a part of the prompt's, which come again

    # --- planning

    def make_setup(self) -> RowSetup:
        self.needs_setup = False
        return RowSetup(
            row=self.handle.row,
            sampling=sampling_spec(self),
            prompt_ids=self.prompt_ids,
            output_ids=list(self.output_ids),
        )

    def make_work(self, num_tokens: int, new_slots: np.ndarray) -> RowWork:
        """The next `num_tokens` positions as a work item; advances `num_planned`."""
        cache = self.handle
        start, end = self.num_planned, self.num_planned + num_tokens
        is_decode = start >= self.num_fill
        rewrite = start > 0 and (self.table_stale or cache.table_dirty_from is not None)
        work = RowWork(
            row=cache.row,
            start=start,
            num_tokens=num_tokens,
            token_ids=None if is_decode else self.fill_ids()[start:end],
            prefix_slots=cache.slots[:start].tobytes() if rewrite else None,
            new_slots=new_slots.tobytes(),
            sample=end >= self.num_fill,
            num_outputs=max(start - self.prompt_len + 1, 0) if is_decode else len(self.output_ids),
            return_logprob=self.return_logprob,
            input_logprob_start=num_tokens if is_decode else self._input_logprob_start(start, end),
            next_prompt_token=self.prompt_ids[end] if end < self.prompt_len else -1,
            top_logprobs=self.top_logprobs_num,
            token_ids_logprob=self.token_ids_logprob,
        )
        cache.table_dirty_from = None
        self.table_stale = False
        self.num_planned = end
        self.num_in_flight += 1
        return work

    def _input_logprob_start(self, start: int, end: int) -> int:
        if not self.wants_input_logprobs or self.input_logprobs_done:
            return end - start
        first = max(self.logprob_start_len - 1, 0)
        # The last prompt position predicts the first output, which is not an input logprob.
        last = min(end, self.prompt_len - 1)
        return min(max(first - start, 0), end - start) if last > first else end - start


def sampling_spec(req: Req) -> SamplingSpec:
    """The sampler's view of a request's sampling parameters."""
    params = req.sampling_params
    bias = params.logit_bias
    return SamplingSpec(
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        seed=params.sampling_seed,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        repetition_penalty=params.repetition_penalty,
        logit_bias={int(key): value for key, value in bias.items()} if bias else None,
        min_new_tokens=params.min_new_tokens,
        stop_ids=sorted(req.eos_ids | set(params.stop_token_ids or ()))
        if params.min_new_tokens
        else [],
    )
