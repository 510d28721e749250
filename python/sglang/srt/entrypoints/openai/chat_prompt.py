"""What every kind of chat template makes of a conversation."""

from __future__ import annotations

import dataclasses

from sglang.srt.utils.errors import RequestError


@dataclasses.dataclass(frozen=True)
class ChatPrompt:
    """A rendered conversation and its ids; the ids are what the model sees. `stop` ends an answer in this format."""

    text: str
    input_ids: list[int]
    stop: tuple[str, ...] = ()


def check_unicode(text: str) -> None:
    """Raises RequestError for half of a surrogate pair, which JSON lets through."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"the messages are not valid Unicode: {error.reason}") from error
