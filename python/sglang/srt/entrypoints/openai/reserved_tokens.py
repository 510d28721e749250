"""Keeps special tokens that a client writes from acting as special tokens.

`<|im_end|>` in a message is text that the user typed. The template renders a guarded copy of the request, in which
every such occurrence is an unguessable marker; afterwards the rendered text is cut at the special tokens that the template
itself put there, and the pieces between them are tokenized as ordinary text. A request without such text takes the
plain way, so its ids equal those of the tokenizer's own `apply_chat_template`.
"""

from __future__ import annotations

import copy
import re
import secrets
import threading
from collections.abc import Callable
from typing import Any

from sglang.srt.utils.errors import RequestError

# A damaged marker is recognised by this many of its characters.
_FRAGMENT_CHARS = 8


class ReservedTokens:
    """The special tokens of one tokenizer. Safe to use from several threads."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = {token.content: (token_id, token) for token_id, token in _special_tokens(tokenizer)}
        self._tokens = {content: entry for content, entry in added.items() if content}
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._longest = max(map(len, self._tokens), default=1)
        # Proper ones; models have up to thousands of special tokens, so they are looked up, not tried.
        self._beginnings = {t[:end] for t in self._tokens for end in range(1, len(t))}
        self._endings = {t[start:] for t in self._tokens for start in range(1, len(t))}
        self._normalize = _normalizer(tokenizer, [token for _, token in self._tokens.values()])
        self._ordinary: Callable[[str], list[int]] | None = None
        self._lock = threading.Lock()

    def occurs_in(self, text: str) -> bool:
        """Whether `text` holds a special token."""
        return self._pattern.search(text) is not None or self._normalizes_to_token(text)

    def is_risky(self, text: str) -> bool:
        """Whether `text` holds a special token, or could be part of one that spans two strings."""
        return self.occurs_in(text) or self.starts_inside(text) or self.ends_inside(text)

    def guard(self) -> Guard:
        """Fresh markers for one request."""
        return Guard(self)

    def split(self, text: str) -> list[str]:
        """Cut at special tokens: ordinary, token, ordinary, token, ..., ordinary."""
        pieces, end = [], 0
        for match in self._pattern.finditer(text):
            pieces += [text[end : match.start()], match.group()]
            end = match.end()
        return [*pieces, text[end:]]

    def encode_pieces(self, pieces: list[str]) -> list[int]:
        """Ids of what `split` gave: odd entries are special tokens, even ones are ordinary whatever they hold."""
        ids: list[int] = []
        for index, piece in enumerate(pieces):
            if index % 2:
                ids.append(self._tokens[piece][0])
                continue
            if index and self._tokens[pieces[index - 1]][1].rstrip:
                piece = piece.lstrip()
            if index + 1 < len(pieces) and self._tokens[pieces[index + 1]][1].lstrip:
                piece = piece.rstrip()
            if piece:
                ids += self._encode_ordinary(piece)
        return ids

    def _encode_ordinary(self, text: str) -> list[int]:
        with self._lock:  # the first use copies the tokenizer
            if self._ordinary is None:
                self._ordinary = _ordinary_encoder(self._tokenizer)
        return self._ordinary(text)

    def _normalizes_to_token(self, text: str) -> bool:
        if self._normalize is None:
            return False
        return self._pattern.search(self._normalize(text)) is not None

    def ends_inside(self, text: str) -> bool:
        """Whether `text` ends with the beginning of a special token."""
        return any(text[-length:] in self._beginnings for length in self._lengths(text))

    def starts_inside(self, text: str) -> bool:
        """Whether `text` starts with the end of a special token."""
        return any(text[:length] in self._endings for length in self._lengths(text))

    def _lengths(self, text: str) -> range:
        return range(1, min(len(text), self._longest - 1) + 1)


class Guard:
    """The markers of one request: `protect` its strings, render, then `pieces` of the result."""

    def __init__(self, tokens: ReservedTokens) -> None:
        self._tokens = tokens
        # Letters and digits only, so that trimming and JSON encoding leave a marker alone.
        self._nonce = secrets.token_hex(16)
        self._originals: list[str] = []
        self._marker = re.compile(f"zq{self._nonce}i(\\d+)qz")

    def protect(self, value: Any) -> Any:
        """A copy of a JSON-like value with markers for special tokens in strings, keys included."""
        try:
            return self._protect(value)
        except RecursionError as error:
            raise RequestError("the messages are nested too deeply") from error

    def pieces(self, rendered: str) -> list[str]:
        """`ReservedTokens.split` of a rendering, with the client's text restored in the ordinary pieces.

        Raises:
            RequestError: the template changed a marker, so it is unknown which text is the client's.
        """
        if self._is_damaged(self._marker.sub("", rendered)):
            raise RequestError(
                "a message contains a reserved special token of this model, and the chat template alters that text; "
                "remove the special token from the message"
            )
        pieces = self._tokens.split(rendered)
        return [piece if index % 2 else self.restore(piece) for index, piece in enumerate(pieces)]

    def restore(self, text: str) -> str:
        """Put the client's text back in place of the markers."""
        return self._marker.sub(lambda match: self._originals[int(match.group(1))], text)

    def _protect(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._protect_text(value)
        if isinstance(value, dict):
            return {self._protect(key): self._protect(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._protect(item) for item in value]
        return value

    def _protect_text(self, text: str) -> str:
        tokens = self._tokens
        if not tokens.is_risky(text):
            return text
        pieces = tokens.split(text)
        if len(pieces) == 1 and tokens.occurs_in(text):  # only its normalised form holds a token
            return self._mark(text)
        marked = "".join(self._mark(p) if index % 2 else p for index, p in enumerate(pieces))
        before = self._mark("") if tokens.starts_inside(text) else ""
        after = self._mark("") if tokens.ends_inside(text) else ""
        return before + marked + after

    def _mark(self, original: str) -> str:
        self._originals.append(original)
        return f"zq{self._nonce}i{len(self._originals) - 1}qz"

    def _is_damaged(self, rest: str) -> bool:
        lowered = rest.lower()
        starts = range(0, len(self._nonce) - _FRAGMENT_CHARS + 1)
        return any(self._nonce[i : i + _FRAGMENT_CHARS] in lowered for i in starts)


def _special_tokens(tokenizer: Any) -> list[tuple[int, Any]]:
    return [(i, token) for i, token in tokenizer.added_tokens_decoder.items() if token.special]


def _normalizer(tokenizer: Any, tokens: list[Any]) -> Callable[[str], str] | None:
    """The tokenizer's normalisation, when some special token is matched after it."""
    if not tokenizer.is_fast or not any(token.normalized for token in tokens):
        return None
    normalizer = tokenizer.backend_tokenizer.normalizer
    return None if normalizer is None else normalizer.normalize_str


def _ordinary_encoder(tokenizer: Any) -> Callable[[str], list[int]]:
    """Text -> ids with no special token recognised."""
    if tokenizer.is_fast:
        # A copy: the setting is a state of the tokenizer, which other requests are using.
        backend = copy.deepcopy(tokenizer.backend_tokenizer)
        backend.encode_special_tokens = True
        return lambda text: backend.encode(text, add_special_tokens=False).ids
    return lambda text: tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
