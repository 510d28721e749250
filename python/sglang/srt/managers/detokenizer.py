"""Token ids to text, one request at a time, at constant cost per token.

`Detokenizer` is made once per tokenizer and chooses how to decode; it opens one `TextStream` per request. Text that later tokens could
still change (an incomplete UTF-8 sequence) is held back until it is settled. This module knows nothing about requests or stop strings.
"""

from __future__ import annotations

import codecs
from functools import lru_cache
from typing import Any, Protocol

# An incomplete UTF-8 character is at most 3 bytes, and a token carries at least one.
MAX_OPEN_TOKENS = 3
# Tokens that still add no sound text after this many were never going to.
MAX_HELD_TOKENS = 8
_REPLACEMENT = "\ufffd"


class TextStream(Protocol):
    """Incremental decoding of one output."""

    def push(self, ids: list[int]) -> str:
        """The text that `ids` settle; joined over all calls (and `flush`) it is the decoded output."""

    def flush(self) -> str:
        """The text still held back; nothing may be pushed afterwards."""


class Detokenizer:
    """Decoding with one tokenizer (a Hugging Face one, fast or slow). Spaces are never "cleaned up": what the tokens spell is shown."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._byte_pieces = _BytePieces(tokenizer) if _is_byte_level(tokenizer) else None
        self._special_ids = _skipped_ids(tokenizer)
        self._anchor: tuple[int, str] | None = None
        # Bounded: a client chooses which tokens it asks about.
        self.token_text = lru_cache(maxsize=65536)(self._compute_token_text)

    def open(
        self, skip_special_tokens: bool = True, spaces_between_special_tokens: bool = True
    ) -> TextStream:
        """A stream for one request; the flags mean what they mean to the tokenizer's `decode`."""
        skipped = self._special_ids if skip_special_tokens else frozenset()
        if self._byte_pieces is not None:
            return _ByteStream(self._byte_pieces, skipped)
        return _WindowStream(self._tokenizer, skipped, spaces_between_special_tokens)

    def _compute_token_text(self, token_id: int) -> str:
        if self._byte_pieces is not None:
            return self._byte_pieces[token_id].decode("utf-8", "replace")
        # In front of the token stands an ordinary one, because decoders drop the space before a first token.
        if self._anchor is None:
            anchor_id = self._tokenizer.encode("a", add_special_tokens=False)[-1]
            self._anchor = anchor_id, _decode(self._tokenizer, [anchor_id])
        anchor_id, anchor_text = self._anchor
        text = _decode(self._tokenizer, [anchor_id, token_id])
        if text.startswith(anchor_text):
            return text[len(anchor_text) :]
        return _decode(self._tokenizer, [token_id])


class _ByteStream:
    """Byte-level vocabularies: the output is the tokens' bytes, read as UTF-8."""

    def __init__(self, pieces: _BytePieces, skipped: frozenset[int]) -> None:
        self._pieces = pieces
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: list[int]) -> str:
        pieces, skipped = self._pieces, self._skipped
        return self._decoder.decode(b"".join([pieces[i] for i in ids if i not in skipped]))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _WindowStream:
    """Any tokenizer: decode a short window of tokens and give out what the new ones added to it.

    The window is the tokens that last added text (context: a decoder treats the first token differently) and those after them.
    """

    def __init__(self, tokenizer: Any, skipped: frozenset[int], spaces_between: bool) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._spaces_between = spaces_between
        self._context: list[int] = []
        self._context_text = ""
        self._pending: list[int] = []

    def push(self, ids: list[int]) -> str:
        self._pending += [i for i in ids if i not in self._skipped]
        # What ends inside a character is settled up to that character, which the last three tokens at most belong to.
        for num_held in range(min(MAX_OPEN_TOKENS + 1, len(self._pending))):
            text = self._decode_window(num_held)
            if len(text) > len(self._context_text) and not text.endswith(_REPLACEMENT):
                return self._take(text, num_held)
        return self.flush() if len(self._pending) > MAX_HELD_TOKENS else ""

    def flush(self) -> str:
        return self._take(self._decode_window(0), 0) if self._pending else ""

    def _decode_window(self, num_held: int) -> str:
        ids = self._context + self._pending[: len(self._pending) - num_held]
        return _decode(self._tokenizer, ids, self._spaces_between)

    def _take(self, text: str, num_held: int) -> str:
        split = len(self._pending) - num_held
        taken, self._pending = self._pending[:split], self._pending[split:]
        if text.startswith(self._context_text):
            new_text = text[len(self._context_text) :]
        else:  # broken bytes right after the context make some decoders drop it; the new tokens then stand alone
            new_text = _decode(self._tokenizer, taken, self._spaces_between)
        if new_text:
            self._set_context(taken)
        return new_text

    def _set_context(self, ids: list[int]) -> None:
        """Keep the end of `ids` as context, longer where it would start inside a character."""
        for length in range(MAX_HELD_TOKENS, MAX_HELD_TOKENS + 4):
            self._context = ids[-length:]
            self._context_text = _decode(self._tokenizer, self._context, self._spaces_between)
            if length >= len(ids) or not self._context_text.startswith(_REPLACEMENT):
                return


class _BytePieces(dict[int, bytes]):
    """Token id -> the bytes it stands for; filled as tokens are met."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self._id_to_token = tokenizer.backend_tokenizer.id_to_token
        self._byte_of_char = _byte_of_char()

    def __missing__(self, token_id: int) -> bytes:
        token = (
            self._id_to_token(token_id) or ""
        )  # models may have more rows than the tokenizer has tokens
        try:
            piece = bytes([self._byte_of_char[char] for char in token])
        except KeyError:  # an added token, which is written as it reads
            piece = token.encode()
        self[token_id] = piece
        return piece


@lru_cache(maxsize=1)
def _byte_of_char() -> dict[str, int]:
    """The alphabet of byte-level BPE (Radford et al. 2019): printable Latin-1 bytes stand for themselves, others follow from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    table = {chr(byte): byte for byte in printable}
    hidden = [byte for byte in range(256) if byte not in printable]
    table.update({chr(0x100 + i): byte for i, byte in enumerate(hidden)})
    return table


def _is_byte_level(tokenizer: Any) -> bool:
    if not tokenizer.is_fast:
        return False
    from tokenizers.decoders import ByteLevel  # late: only there is a tokenizer to look at

    return isinstance(tokenizer.backend_tokenizer.decoder, ByteLevel)


def _skipped_ids(tokenizer: Any) -> frozenset[int]:
    """The ids that `decode(..., skip_special_tokens=True)` leaves out."""
    if not tokenizer.is_fast:
        return frozenset(tokenizer.all_special_ids)
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    return frozenset(token_id for token_id, token in added.items() if token.special)


def _decode(tokenizer: Any, ids: list[int], spaces_between: bool = True) -> str:
    if tokenizer.is_fast:
        return tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)
    return tokenizer.decode(
        ids,
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
        spaces_between_special_tokens=spaces_between,
    )
