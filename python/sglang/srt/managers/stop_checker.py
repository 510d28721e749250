"""Decides after every token whether a request has ended, and why.

Order: length, end of the grammar, stop ids and EOS, ids outside the vocabulary, stop strings, stop regexes. Text is only decoded for
requests that have stop strings or regexes, and then only the newest tokens of it.
"""

from __future__ import annotations

import functools
import time
import weakref
from typing import Any, Protocol

import msgspec
import regex

from sglang.srt.managers.io_struct import FinishReason
from sglang.srt.sampling.sampling_params import SamplingParams

# Seconds per token that all regexes of a request may take. A backtracking regex can run for ever, so the `regex` package is used,
# whose searches can be interrupted; a linear-time engine would refuse look-around and back-references, which `re` accepts.
_REGEX_BUDGET = 0.02
# Characters of the tail per token of the window that a regex is searched in.
_CHARS_PER_TOKEN = 8
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A token that ends in the middle of a character is held back, but not for longer than this many tokens.
_MAX_HELD_TOKENS = 8


class Grammar(Protocol):
    def is_terminated(self) -> bool: ...


class StoppableRequest(Protocol):
    """What is read of a request; nothing is written. Compared by identity and must allow weak references."""

    @property
    def output_ids(self) -> list[int]: ...
    @property
    def sampling_params(self) -> SamplingParams: ...
    @property
    def grammar(self) -> Grammar | None: ...
    @property
    def max_new_tokens(self) -> int:
        """The limit in force: that of the parameters, or what the context leaves."""


class StopDecision(msgspec.Struct):
    """A request has ended."""

    reason: FinishReason
    trim_ids: int = 0  # last ids that the text must not show
    trim_text: str | None = None  # matched text; the request's text ends before its last occurrence


class StopChecker:
    """Stateless but for the decoded tail of requests with stop strings, which goes away with the request.

    Args:
        tokenizer: Hugging Face tokenizer, or None when the server runs without one (stop strings are then refused by the front).
        eos_ids: ids that end every request without `ignore_eos`.
        vocab_size: width of the logits.
    """

    def __init__(self, tokenizer: Any, eos_ids: frozenset[int], vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._eos_ids = frozenset(eos_ids)
        self._vocab_size = vocab_size
        self._tails: weakref.WeakKeyDictionary[StoppableRequest, _DecodedTail]
        self._tails = weakref.WeakKeyDictionary()

    def check(self, req: StoppableRequest) -> StopDecision | None:
        """To be called after each token appended to `req.output_ids` (and accepted by `req.grammar`)."""
        if len(req.output_ids) >= req.max_new_tokens:
            return StopDecision(FinishReason(type="length", length=req.max_new_tokens))
        if not req.output_ids:
            return None
        return self._check_token(req) or self._check_text(req)

    def _check_token(self, req: StoppableRequest) -> StopDecision | None:
        token, params = req.output_ids[-1], req.sampling_params
        is_stop_id = params.stop_token_ids is not None and token in params.stop_token_ids
        is_eos = token in self._eos_ids
        trim_ids = int((is_stop_id or is_eos) and not params.no_stop_trim)
        if req.grammar is not None and req.grammar.is_terminated():
            return StopDecision(FinishReason(type="stop", matched=token), trim_ids=trim_ids)
        if is_stop_id or (is_eos and not params.ignore_eos):
            return StopDecision(FinishReason(type="stop", matched=token), trim_ids=trim_ids)
        if not 0 <= token < self._vocab_size:
            return _failure(f"token id {token} is outside the vocabulary of {self._vocab_size}")
        return None

    def _check_text(self, req: StoppableRequest) -> StopDecision | None:
        params = req.sampling_params
        if self._tokenizer is None or not (params.stop_strs or params.stop_regex_strs):
            return None
        tail = self._tails.get(req)
        if tail is None:
            tail = self._tails[req] = _DecodedTail(self._tokenizer, params)
        num_new = tail.update(req.output_ids)
        if num_new == 0:
            return None
        return tail.find_string(num_new) or tail.find_regex()


class _DecodedTail:
    """The end of a request's text, decoded a few tokens at a time.

    Tokens do not decode independently (characters may span them, some tokenizers drop a leading space), so the tokens since the
    last safe point are decoded twice, with and without the new ones, and the difference is appended.
    """

    def __init__(self, tokenizer: Any, params: SamplingParams) -> None:
        self._tokenizer = tokenizer
        self._stop_strs = params.stop_strs
        self._patterns = params.stop_regex_strs
        self._no_stop_trim = params.no_stop_trim
        self._max_chars = max(
            max(map(len, params.stop_strs), default=0),
            params.stop_regex_max_len * _CHARS_PER_TOKEN,
        )
        self._text = ""  # text before position `_read`, cut to what a match may need
        self._is_cut = False
        self._context = 0  # tokens from here on are decoded again, for context
        self._read = 0  # tokens before here are in `_text`

    def update(self, output_ids: list[int]) -> int:
        """Take in new tokens; returns the number of new characters."""
        num_new = 0
        # Normally one token; after a retraction or the first time maybe more, in bounded pieces.
        while self._read < len(output_ids):
            end = min(len(output_ids), self._read + _MAX_HELD_TOKENS)
            text = self._decode_step(output_ids, end)
            if text is None:
                break
            self._text += text
            num_new += len(text)
        # One character more than needed, so that a regex can look behind and `^` does not match at the cut.
        surplus = len(self._text) - num_new - self._max_chars - 1
        if surplus > 0:
            self._text = self._text[surplus:]
            self._is_cut = True
        return num_new

    def _decode_step(self, output_ids: list[int], end: int) -> str | None:
        """New text up to token `end`; None while it ends in the middle of a character."""
        before = self._decode(output_ids[self._context : self._read])
        after = self._decode(output_ids[self._context : end])
        is_incomplete = after.endswith(_REPLACEMENT) or len(after) < len(before)
        if is_incomplete and end - self._read < _MAX_HELD_TOKENS:
            return None
        self._context, self._read = self._read, end
        return after[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        # Special tokens are kept: a stop string may be one.
        return self._tokenizer.decode(ids, skip_special_tokens=False) if ids else ""

    def find_string(self, num_new: int) -> StopDecision | None:
        """The stop string that begins first, among those that end in the new characters."""
        text = self._text
        best: tuple[int, str] | None = None
        for stop in self._stop_strs:
            start = text.find(stop, max(0, len(text) - num_new - len(stop) + 1))
            if start >= 0 and (best is None or start < best[0]):
                best = (start, stop)
        if best is None:
            return None
        return self._stop(best[1], best[1])

    def find_regex(self) -> StopDecision | None:
        """The first pattern that matches; `matched` is the pattern, the text to cut is what it matched."""
        deadline = time.monotonic() + _REGEX_BUDGET
        for pattern in self._patterns:
            try:
                compiled = _compile_regex(pattern)
                remaining = max(deadline - time.monotonic(), 1e-3)
                match = compiled.search(self._text, pos=int(self._is_cut), timeout=remaining)
            except TimeoutError:
                return _refusal(
                    f"stop_regex={pattern[:80]!r} takes too long to search; simplify it"
                )
            except (regex.error, RecursionError, OverflowError) as error:
                return _refusal(f"stop_regex={pattern[:80]!r} is not supported: {error}")
            if match is not None:
                return self._stop(pattern, match.group() or None)
        return None

    def _stop(self, matched: str, found: str | None) -> StopDecision:
        reason = FinishReason(type="stop", matched=matched)
        return StopDecision(reason, trim_text=None if self._no_stop_trim else found)


@functools.lru_cache(maxsize=256)
def _compile_regex(pattern: str) -> regex.Pattern[str]:
    return regex.compile(pattern, regex.VERSION0)


def _failure(message: str) -> StopDecision:
    """Our fault or the model's."""
    reason = FinishReason(
        type="abort", message=message, status_code=500, err_type="InternalServerError"
    )
    return StopDecision(reason)


def _refusal(message: str) -> StopDecision:
    """The request's fault."""
    return StopDecision(
        FinishReason(type="abort", message=message, status_code=400, err_type="BadRequestError")
    )
