"""A conversation template in the place of a Jinja one: same calls, same care for special tokens that clients type."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sglang.srt.entrypoints.openai.chat_prompt import ChatPrompt, check_unicode
from sglang.srt.entrypoints.openai.reserved_tokens import ReservedTokens
from sglang.srt.parser.conversation import chat_templates, generate_chat_conv
from sglang.srt.utils.errors import RequestError


@dataclasses.dataclass(frozen=True)
class _Message:
    role: str
    content: Any


@dataclasses.dataclass(frozen=True)
class _Request:
    messages: list[_Message]


class ConversationTemplate:
    """One registered conversation template with one tokenizer. Safe to use from several threads."""

    def __init__(self, name: str, tokenizer: Any, reserved: ReservedTokens) -> None:
        self.name = name
        self._tokenizer = tokenizer
        self._reserved = reserved
        self._begin = _opening_ids(tokenizer)

    def encode(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        prefix: str = "",
    ) -> ChatPrompt:
        """Render and tokenize. Raises RequestError for tools, and for messages that the template has no place for."""
        if tools:
            raise RequestError(
                f"the conversation template {self.name!r} has no place for tools; leave them out, or serve with a .jinja template"
            )
        guard = self._reserved.guard()
        request = _Request(
            [
                _Message(message["role"], guard.protect(_as_urls(message.get("content"))))
                for message in messages
            ]
        )
        try:
            text = generate_chat_conv(request, self.name).get_prompt()
        except RequestError:
            raise
        except ValueError as error:
            raise RequestError(str(error)) from error
        pieces = guard.pieces(text + guard.protect(prefix))
        check_unicode("".join(pieces))
        return ChatPrompt("".join(pieces), self._encode_pieces(pieces), self._stop())

    def _encode_pieces(self, pieces: list[str]) -> list[int]:
        ids = self._reserved.encode_pieces(pieces)
        return ids if ids[: len(self._begin)] == self._begin else self._begin + ids

    def _stop(self) -> tuple[str, ...]:
        stop = chat_templates[self.name].stop_str or ()
        return (stop,) if isinstance(stop, str) else tuple(stop)


def _as_urls(content: Any) -> Any:
    """Media parts in the form that conversations take; the sources themselves have been collected."""
    if not isinstance(content, list):
        return content
    return [
        part
        if part["type"] == "text"
        else {"type": f"{part['type']}_url", f"{part['type']}_url": {"url": ""}}
        for part in content
    ]


def _opening_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer puts in front of every text."""
    plain = tokenizer.encode("a", add_special_tokens=False)
    full = tokenizer.encode("a")
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return list(full[:start])
    return []
