"""The forms: every way in which the engine can come to compute a sequence, as data.

A form says which requests arrive when and how they are scheduled, and what must then have happened: a form that was meant to retract
requests and did not proves nothing, so it fails.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch

from sglang.verify.subject import LogprobAsk, Schedule, Session

NUM_TOKENS = 64
_LENGTHS = {"long": 60, "middle": 37, "short": 18, "tiny": 5, "single": 1}
# Where "fork" leaves "long" and where "head" ends: not on the border of a page of 16.
_FORK_AT, _HEAD_LEN = 41, 30
_FORK_TAIL, _FOLLOW_UP = 12, 5
MIN_CONTEXT = _LENGTHS["long"] + 2 * NUM_TOKENS + _FOLLOW_UP


@dataclasses.dataclass(frozen=True)
class Material:
    """Prompts by name, as token ids. `follow_up` is what a user says after an answer."""

    prompts: dict[str, list[int]]
    follow_up: list[int]
    num_tokens: int = NUM_TOKENS

    @staticmethod
    def random(vocab_size: int, context_len: int, seed: int = 0) -> Material:
        """Seeded prompts of 1 to 60 tokens. Raises ValueError when the context is too short for all forms."""
        if context_len < MIN_CONTEXT:
            raise ValueError(
                f"context length {context_len} is too short for the proof, which needs {MIN_CONTEXT}"
            )
        generator = torch.Generator().manual_seed(seed)

        def draw(count: int) -> list[int]:
            return torch.randint(vocab_size, (count,), generator=generator).tolist()

        prompts = {name: draw(length) for name, length in _LENGTHS.items()}
        prompts["fork"] = prompts["long"][:_FORK_AT] + draw(_FORK_TAIL)
        prompts["head"] = prompts["long"][:_HEAD_LEN]
        return Material(prompts, draw(_FOLLOW_UP))

    def num_tokens_of(self, ask: Ask) -> int:
        """New tokens of a request."""
        return self.num_tokens if ask.num_tokens is None else ask.num_tokens


@dataclasses.dataclass(frozen=True)
class Ask:
    """One request: the prompt's name, and the turns of the scheduler that pass before it arrives (None: until all is done).

    `num_tokens` None is what the material says. `continues` is the place of an earlier request whose prompt and outputs come first,
    with the follow-up behind them.
    """

    prompt: str
    wait: int | None = 0
    num_tokens: int | None = None
    continues: int | None = None
    logprobs: LogprobAsk | None = None


# Looks at a session that has ended; returns what is missing, or None.
Expectation = Callable[[Session], str | None]


@dataclasses.dataclass(frozen=True)
class Form:
    """A way of computing sequences."""

    name: str
    asks: tuple[Ask, ...]
    schedule: Schedule = Schedule()
    page_size: int = 1
    expects: tuple[Expectation, ...] = ()


# --- expectations


def batch_of(count: int, mode: str) -> Expectation:
    """A step of that mode with at least so many requests."""

    def check(session: Session) -> str | None:
        largest = max((len(s.lens) for s in session.steps if s.mode == mode), default=0)
        return (
            None if largest >= count else f"no {mode} step with {count} requests, at most {largest}"
        )

    return check


def chunks(count: int) -> Expectation:
    """At least so many pieces of prompts that were not their last."""

    def check(session: Session) -> str | None:
        found = sum(step.chunks for step in session.steps)
        return None if found >= count else f"{found} partial chunks instead of {count}"

    return check


def step_tokens(most: int) -> Expectation:
    """No prefill step was larger."""

    def check(session: Session) -> str | None:
        largest = max(sum(s.lens) for s in session.steps if s.mode == "extend")
        return None if largest <= most else f"a prefill step of {largest} tokens, allowed {most}"

    return check


def cached(place: int, count: int) -> Expectation:
    """Request number `place` found exactly so many tokens in the cache."""

    def check(session: Session) -> str | None:
        found = list(session.traces.values())[place].cached_tokens
        return None if found == count else f"request {place}: {found} cached tokens, not {count}"

    return check


def retracted(session: Session) -> str | None:
    """A request lost its place after it had produced tokens, and came back with them."""
    if any(step.resumed for step in session.steps):
        return None
    return "no request was retracted while it was decoding"


# --- the list


def _together(*names: str, wait: int | None = 0) -> tuple[Ask, ...]:
    first, *others = names
    return (Ask(first, wait), *(Ask(name) for name in others))


_ALL = _together(*_LENGTHS)
# Each arrives while the ones before it are decoding, so a decode batch holds five different lengths.
_STAGGERED = (Ask("short"), Ask("long", 3), Ask("single", 4), Ask("middle", 5), Ask("tiny", 8))
# What fills the cache for others need not decode for long.
_SEED = Ask("long", num_tokens=4)
_OVERBOOKED = Schedule(chunk_size=32, num_tokens=224, conservativeness=0.01)


def _whole(page: int) -> Form:
    asks = (Ask("long"), *_together("middle", "short", "tiny", "single", wait=1))
    return Form(
        f"whole prefill, page {page}", asks, page_size=page, expects=(batch_of(4, "extend"),)
    )


def _chunked(size: int, page: int, asks: tuple[Ask, ...] = _ALL) -> Form:
    total = sum(_LENGTHS[ask.prompt] for ask in asks)
    return Form(
        f"prefill in chunks of {size}, page {page}",
        asks,
        Schedule(chunk_size=size),
        page,
        (chunks(max(total // size - len(asks), 1)), step_tokens(size)),
    )


def _full_hit(page: int) -> Form:
    """The same prompt again (its last token is computed anew), and a second turn on top of the answer."""
    asks = (_SEED, Ask("long", None), Ask("long", None, continues=1))
    again = _pages(_LENGTHS["long"] - 1, page)
    # The last token of an answer is sampled but never computed.
    second_turn = _pages(_LENGTHS["long"] + NUM_TOKENS - 1, page)
    return Form(
        f"cached prefix, full hit, page {page}",
        asks,
        page_size=page,
        expects=(cached(1, again), cached(2, second_turn)),
    )


def _partial_hit(page: int, chunk: int | None) -> Form:
    """A prompt that leaves a cached one half way, and one that ends inside it."""
    asks = (_SEED, Ask("fork", None), Ask("head"))
    name = f"cached prefix, partial hit, page {page}" + (f", chunks of {chunk}" if chunk else "")
    expects = (cached(1, _pages(_FORK_AT, page)), cached(2, _pages(_HEAD_LEN - 1, page)))
    return Form(name, asks, Schedule(chunk_size=chunk), page, expects)


def _decode(page: int, *, mixed: bool, depth: int = 0) -> Form:
    name = f"decode at different lengths{', mixed with prefill' if mixed else ''}, page {page}"
    expects = [batch_of(5, "decode")] + ([batch_of(2, "mixed")] if mixed else [])
    return Form(
        name + (", overlapped" if depth else ""),
        _STAGGERED,
        Schedule(chunk_size=16 if mixed else None, mixed_chunk=mixed, depth=depth),
        page,
        tuple(expects),
    )


def _retraction(page: int, *, depth: int = 0, prefix_cache: bool = True) -> Form:
    name = f"retraction, page {page}{', overlapped' if depth else ''}"
    return Form(
        name + ("" if prefix_cache else ", no prefix cache"),
        _ALL,
        dataclasses.replace(_OVERBOOKED, depth=depth, prefix_cache=prefix_cache),
        page,
        (retracted,),
    )


def _logprobs(page: int, *, chunk: int | None, depth: int = 0) -> Form:
    """All positions, a tail of the prompt on top of a cached prefix, outputs only, and a neighbour that wants none."""
    ids = (3, 1, 4, 15, 92)
    asks = (
        Ask("long", num_tokens=12, logprobs=LogprobAsk(0, top=5, token_ids=ids)),
        Ask("fork", None, logprobs=LogprobAsk(_FORK_AT + 4, top=3)),
        Ask("middle"),
        Ask("short", logprobs=LogprobAsk(-1, top=2, token_ids=ids[:2])),
        Ask("single", 2, logprobs=LogprobAsk(0, top=0)),
    )
    name = f"logprobs, page {page}" + (f", chunks of {chunk}" if chunk else "")
    return Form(
        name + (", overlapped" if depth else ""),
        asks,
        Schedule(chunk_size=chunk, mixed_chunk=chunk is not None, depth=depth),
        page,
        (cached(0, 0), cached(1, _pages(_FORK_AT, page))),
    )


def _pages(count: int, page_size: int) -> int:
    return count // page_size * page_size


FORMS: tuple[Form, ...] = (
    _whole(1),
    _whole(16),
    _chunked(1, 1, (Ask("short"),)),
    _chunked(3, 1),
    _chunked(16, 1),
    _chunked(64, 1),
    _chunked(16, 16),
    _chunked(48, 16),
    _full_hit(1),
    _full_hit(16),
    _partial_hit(1, None),
    _partial_hit(16, None),
    _partial_hit(1, 3),
    _partial_hit(16, 16),
    _decode(1, mixed=False),
    _decode(16, mixed=False),
    _decode(1, mixed=True),
    _decode(16, mixed=True),
    _decode(1, mixed=False, depth=1),
    _decode(16, mixed=True, depth=1),
    _retraction(1),
    _retraction(16),
    _retraction(1, prefix_cache=False),
    _retraction(16, depth=1),
    _logprobs(1, chunk=None),
    _logprobs(16, chunk=None),
    _logprobs(1, chunk=7),
    _logprobs(16, chunk=16, depth=1),
)


def forms_named(parts: Iterable[str]) -> tuple[Form, ...]:
    """Forms whose name contains one of `parts`. Raises ValueError when there is none for a part."""
    chosen: dict[str, Form] = {}
    for part in parts:
        found = [form for form in FORMS if part in form.name]
        if not found:
            allowed = "; ".join(form.name for form in FORMS)
            raise ValueError(f"no form has {part!r} in its name; the forms are: {allowed}")
        chosen |= {form.name: form for form in found}
    return tuple(form for form in FORMS if form.name in chosen)
