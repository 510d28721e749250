"""Grammars compiled by xgrammar.

The library detects the vocabulary's encoding from the tokenizer; tokens that the tokenizer does not know (a padded
vocabulary) are empty strings, which xgrammar never allows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from sglang.srt.constrained.base import (
    BackendRecipe,
    GrammarOptions,
    InvalidGrammarError,
)
from sglang.srt.constrained.structural_tag import read_structural_tag

if TYPE_CHECKING:
    import xgrammar


def make_recipe(
    tokenizer: Any, vocab_size: int, eos_ids: list[int], options: GrammarOptions
) -> BackendRecipe:
    """Raises ValueError for a tokenizer that xgrammar cannot read. There is no whitespace pattern here."""
    import xgrammar  # heavy, and only needed when a request brings a grammar

    info = xgrammar.TokenizerInfo.from_huggingface(
        tokenizer, vocab_size=vocab_size, stop_token_ids=eos_ids or None
    )
    # Some versions answer with a subclass of str, which msgspec does not encode.
    payload = _Payload(str(info.serialize_json()), options.any_whitespace)
    return BackendRecipe(f"{__name__}:from_payload", msgspec.msgpack.encode(payload))


def from_payload(payload: bytes) -> XGrammarBackend:
    """Counterpart of `make_recipe`."""
    return XGrammarBackend(msgspec.msgpack.decode(payload, type=_Payload))


class XGrammarBackend:
    """See `GrammarBackend`. The library's own cache is off: `GrammarManager` keeps one."""

    def __init__(self, payload: _Payload) -> None:
        import xgrammar  # see make_recipe

        self._info = xgrammar.TokenizerInfo.deserialize_json(payload.tokenizer_info)
        self._any_whitespace = payload.any_whitespace
        self._compiler = xgrammar.GrammarCompiler(self._info, max_threads=1, cache_enabled=False)

    def compile(self, kind: str, text: str) -> XGrammarCompiled:
        compiler = self._compiler
        try:
            if kind == "json":
                _check_references(text)
                compiled = compiler.compile_json_schema(text, any_whitespace=self._any_whitespace)
            elif kind == "regex":
                compiled = compiler.compile_regex(text)
            elif kind == "ebnf":
                compiled = compiler.compile_grammar(text)
            elif kind == "structural_tag":
                compiled = compiler.compile_structural_tag(read_structural_tag(text))
            else:
                raise InvalidGrammarError(f"xgrammar has no grammars of kind {kind!r}")
        except InvalidGrammarError:
            raise
        except (RuntimeError, ValueError, TypeError) as error:
            raise InvalidGrammarError(_reason(error)) from error
        return XGrammarCompiled(compiled)

    def load(self, data: bytes) -> XGrammarCompiled:
        import xgrammar  # see make_recipe

        return XGrammarCompiled(
            xgrammar.CompiledGrammar.deserialize_json(data.decode(), self._info)
        )


class XGrammarCompiled:
    """See `CompiledGrammar`."""

    def __init__(self, compiled: xgrammar.CompiledGrammar) -> None:
        self._compiled = compiled

    def new_matcher(self) -> XGrammarMatcher:
        import xgrammar  # see make_recipe

        return XGrammarMatcher(xgrammar.GrammarMatcher(self._compiled))

    def dump(self) -> bytes:
        return self._compiled.serialize_json().encode()


class XGrammarMatcher:
    """See `GrammarMatcher`."""

    def __init__(self, matcher: xgrammar.GrammarMatcher) -> None:
        self._matcher = matcher

    def accept_token(self, token_id: int) -> bool:
        return not self._matcher.is_terminated() and self._matcher.accept_token(token_id)

    def fill_mask(self, mask: np.ndarray) -> None:
        self._matcher.fill_next_token_bitmask(mask.reshape(1, -1))

    def is_terminated(self) -> bool:
        return self._matcher.is_terminated()

    def rollback(self, num_tokens: int) -> None:
        self._matcher.rollback(num_tokens)

    def jump_forward(self) -> str:
        return self._matcher.find_jump_forward_string()


class _Payload(msgspec.Struct):
    tokenizer_info: str  # serialised by xgrammar
    any_whitespace: bool


def _check_references(schema: str) -> None:
    """The library takes a `$ref` to another document for "anything"."""
    waiting = [msgspec.json.decode(schema)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            target = value.get("$ref")
            if isinstance(target, str) and not target.startswith("#"):
                raise InvalidGrammarError(f"$ref {ascii(target)[:80]} leads outside the schema")
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _reason(error: Exception) -> str:
    """The library's message without its time stamp and source position, cut to a sentence's length."""
    text = str(error).strip()
    if text.startswith("[") and "] " in text:
        text = text.partition("] ")[2].partition(": ")[2] or text
    return text[:500]
