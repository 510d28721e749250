"""The forms that only prompts with media have: see `forms` for what a form is. Names of prompts are those of a `MediaFamily`."""

from __future__ import annotations

import dataclasses

from sglang.verify.forms import Ask, Expectation, Form, batch_of, cached, chunks, retracted
from sglang.verify.media import MediaPrompt
from sglang.verify.subject import LogprobAsk, Schedule

NUM_TOKENS = 20
_SEED_TOKENS = 3
_OVERBOOKED = Schedule(chunk_size=32, num_tokens=160, conservativeness=0.01)


def media_forms(prompts: dict[str, MediaPrompt]) -> tuple[Form, ...]:
    """All forms for the prompts that a family has: a family without videos has no form with one."""
    forms = [form for page in (1, 16) for form in _of_page(page, prompts)]
    forms += [_chunked(size, 1, prompts) for size in (1, 5, 16)]
    forms += [_chunked(16, 16, prompts), _chunked(32, 16, prompts)]
    forms += [_mixed(1, 1), _mixed(16, 1), _retraction(1, 1), _retraction(16, 1)]
    return tuple(forms)


def _of_page(page: int, prompts: dict[str, MediaPrompt]) -> list[Form]:
    return [
        _each(page, prompts),
        _together(page, prompts),
        _same_again(page, prompts),
        _other_image(page, prompts),
        _second_differs(page, prompts),
        _mixed(page, 0),
        _retraction(page, 0),
        _logprobs(page),
    ]


def _each(page: int, prompts: dict[str, MediaPrompt]) -> Form:
    """One after the other, each with an empty batch and another row's past."""
    asks = tuple(_ask(name, None, num_tokens=4) for name in prompts)
    return Form(f"media: one by one, page {page}", asks, page_size=page)


def _together(page: int, prompts: dict[str, MediaPrompt]) -> Form:
    """Media and text in one prefill."""
    names = [
        name for name in ("image", "two images", "video", "image and video") if name in prompts
    ]
    asks = (*(_ask(name) for name in names), _ask("middle"), _ask("tiny"))
    # A video that two prompts begin with is computed for one and waited for by the other.
    expects = (batch_of(len(asks) - 1, "extend"), batch_of(len(asks), "decode"))
    return Form(f"media: together with text, page {page}", asks, page_size=page, expects=expects)


def _same_again(page: int, prompts: dict[str, MediaPrompt]) -> Form:
    """The same image is found in the cache, and so is its answer in a second turn."""
    length = len(prompts["image"].token_ids)
    asks = (
        _ask("image", num_tokens=_SEED_TOKENS),
        _ask("image", None),
        _ask("image", None, continues=1),
    )
    expects = (
        cached(1, _pages(length - 1, page)),
        cached(2, _pages(length + NUM_TOKENS - 1, page)),
    )
    return Form(f"media: same image again, page {page}", asks, page_size=page, expects=expects)


def _other_image(page: int, prompts: dict[str, MediaPrompt]) -> Form:
    """Another image of the same size shares the text before it and nothing else."""
    asks = (
        _ask("image", num_tokens=_SEED_TOKENS),
        _ask("other image", None),
        _ask("image", None, num_tokens=_SEED_TOKENS),
    )
    before = _pages(prompts["image"].media_at[0], page)
    whole = _pages(len(prompts["image"].token_ids) - 1, page)
    expects = (cached(1, before), cached(2, whole))
    return Form(f"media: another image, page {page}", asks, page_size=page, expects=expects)


def _second_differs(page: int, prompts: dict[str, MediaPrompt]) -> Form:
    """The first image of two is shared when the second is another one."""
    asks = (_ask("two images", num_tokens=_SEED_TOKENS), _ask("second differs", None))
    shared = _pages(prompts["two images"].media_at[1], page)
    expects = (cached(1, shared),)
    return Form(f"media: second image differs, page {page}", asks, page_size=page, expects=expects)


def _chunked(size: int, page: int, prompts: dict[str, MediaPrompt]) -> Form:
    """Chunk borders fall into images."""
    names = ["two images", *(["video"] if "video" in prompts else []), "middle"]
    if size == 1:
        names = ["image"]
    media = [prompts[name] for name in names if name in prompts]
    total = sum(len(prompt.token_ids) - prompt.num_uncut for prompt in media)
    expects: tuple[Expectation, ...] = (chunks(max(total // size - len(names), 1)),)
    asks = tuple(_ask(name, num_tokens=8) for name in names)
    name = f"media: chunks of {size}, page {page}"
    return Form(name, asks, Schedule(chunk_size=size), page, expects)


def _mixed(page: int, depth: int) -> Form:
    """Images arrive while text and other images decode."""
    asks = (
        _ask("short"),
        _ask("image", 3),
        _ask("two images", 3),
        _ask("tiny", 4),
        _ask("image", 5),
    )
    schedule = Schedule(chunk_size=16, mixed_chunk=True, depth=depth)
    name = f"media: mixed steps, page {page}" + (", overlapped" if depth else "")
    return Form(name, asks, schedule, page, (batch_of(2, "mixed"), batch_of(3, "decode")))


def _retraction(page: int, depth: int) -> Form:
    asks = tuple(_ask(name) for name in ("image", "two images", "other image", "middle", "short"))
    schedule = dataclasses.replace(_OVERBOOKED, depth=depth)
    name = f"media: retraction, page {page}" + (", overlapped" if depth else "")
    return Form(name, asks, schedule, page, (retracted,))


def _logprobs(page: int) -> Form:
    """Of prompt positions too, media among them."""
    asks = (
        _ask("image", num_tokens=6, logprobs=LogprobAsk(0, top=3, token_ids=(5, 9))),
        _ask("two images", num_tokens=6, logprobs=LogprobAsk(12, top=2)),
        _ask("short", num_tokens=6),
    )
    schedule = Schedule(chunk_size=16)
    return Form(f"media: logprobs, page {page}", asks, schedule, page)


def _pages(count: int, page_size: int) -> int:
    return count // page_size * page_size


def _ask(
    prompt: str,
    wait: int | None = 0,
    num_tokens: int = NUM_TOKENS,
    continues: int | None = None,
    logprobs: LogprobAsk | None = None,
) -> Ask:
    return Ask(prompt, wait, num_tokens, continues, logprobs)
