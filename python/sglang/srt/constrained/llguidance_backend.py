"""Grammars compiled by llguidance.

The library bounds its own work (parser limits), masks are computed lazily, and a grammar is cheap to rebuild from its text:
`dump` is that text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from sglang.srt.constrained.base import (
    BackendRecipe,
    GrammarOptions,
    InvalidGrammarError,
    clear_tail,
)
from sglang.srt.constrained.structural_tag import read_structural_tag

if TYPE_CHECKING:
    import llguidance


def make_recipe(
    tokenizer: Any, vocab_size: int, eos_ids: list[int], options: GrammarOptions
) -> BackendRecipe:
    """Raises ValueError unless the tokenizer is a fast one."""
    from transformers import PreTrainedTokenizerFast  # heavy

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"{type(tokenizer).__name__} is not a fast tokenizer")
    stop_ids = eos_ids or [tokenizer.eos_token_id]
    if stop_ids[0] is None:
        raise ValueError("llguidance needs an EOS token, and neither tokenizer nor model names one")
    backend = msgspec.json.decode(tokenizer.backend_tokenizer.to_str())
    backend["padding"] = backend["truncation"] = None
    payload = _Payload(
        tokenizer=msgspec.json.encode(backend).decode(),
        known_tokens=max(tokenizer.get_vocab().values()) + 1,
        vocab_size=vocab_size,
        stop_ids=stop_ids,
        any_whitespace=options.any_whitespace,
        whitespace_pattern=options.whitespace_pattern,
    )
    return BackendRecipe(f"{__name__}:from_payload", msgspec.msgpack.encode(payload))


def from_payload(payload: bytes) -> LLGuidanceBackend:
    """Counterpart of `make_recipe`."""
    return LLGuidanceBackend(msgspec.msgpack.decode(payload, type=_Payload))


class LLGuidanceBackend:
    """See `GrammarBackend`."""

    def __init__(self, payload: _Payload) -> None:
        import llguidance  # optional, heavy

        # The mask covers the tokenizer's ids or the model's, whichever are more; fill_mask cuts it.
        self._known_tokens = min(payload.known_tokens, payload.vocab_size)
        num_ids = max(payload.known_tokens, payload.vocab_size)
        self._tokenizer = llguidance.LLTokenizer(
            payload.tokenizer, n_vocab=num_ids, eos_token=payload.stop_ids
        )
        self._mask_bytes = (num_ids + 31) // 32 * 4
        # A JsonCompileOptions, which exists in the library's stubs only.
        self._json_options: Any = {"whitespace_flexible": payload.any_whitespace}
        if payload.whitespace_pattern is not None:
            self._json_options["whitespace_pattern"] = payload.whitespace_pattern
        elif not payload.any_whitespace:
            self._json_options |= {"item_separator": ", ", "key_separator": ": "}

    def compile(self, kind: str, text: str) -> LLGuidanceCompiled:
        try:
            return self.load(self._to_grammar(kind, text).encode())
        except InvalidGrammarError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
            raise InvalidGrammarError(f"{type(error).__name__}: {error}"[:500]) from error

    def load(self, data: bytes) -> LLGuidanceCompiled:
        import llguidance  # optional, heavy

        grammar = data.decode()
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise InvalidGrammarError(matcher.get_error()[:500])
        return LLGuidanceCompiled(matcher, grammar, self._known_tokens, self._mask_bytes)

    def _to_grammar(self, kind: str, text: str) -> str:
        import llguidance  # optional, heavy
        from llguidance.gbnf_to_lark import any_to_lark

        if kind == "json":
            return llguidance.LLMatcher.grammar_from_json_schema(text, overrides=self._json_options)
        if kind == "regex":
            return llguidance.LLMatcher.grammar_from_regex(text)
        if kind == "ebnf":
            try:
                return llguidance.LLMatcher.grammar_from_lark(any_to_lark(text))
            except Exception as error:  # the converter raises a class that it does not export
                raise InvalidGrammarError(f"not an EBNF grammar: {error}"[:500]) from error
        if kind == "structural_tag":
            return _structural_tag_grammar(text)
        raise InvalidGrammarError(f"llguidance has no grammars of kind {kind!r}")


class LLGuidanceCompiled:
    """See `CompiledGrammar`."""

    def __init__(
        self, prototype: llguidance.LLMatcher, grammar: str, known_tokens: int, mask_bytes: int
    ) -> None:
        self._prototype = prototype
        self._grammar = grammar
        self._known_tokens = known_tokens
        self._mask_bytes = mask_bytes

    def new_matcher(self) -> LLGuidanceMatcher:
        return LLGuidanceMatcher(self._prototype.deep_copy(), self._known_tokens, self._mask_bytes)

    def dump(self) -> bytes:
        return self._grammar.encode()


class LLGuidanceMatcher:
    """See `GrammarMatcher`. When a limit of the parser is hit in the middle of a text, nothing is allowed any more."""

    def __init__(self, matcher: llguidance.LLMatcher, known_tokens: int, mask_bytes: int) -> None:
        self._matcher = matcher
        self._known_tokens = known_tokens
        self._mask = np.zeros(mask_bytes // 4, dtype=np.int32)

    def accept_token(self, token_id: int) -> bool:
        if not 0 <= token_id < self._known_tokens or self._matcher.is_stopped():
            return False
        # `consume_token` would leave the matcher broken after a refusal.
        return self._matcher.try_consume_tokens([token_id]) == 1

    def fill_mask(self, mask: np.ndarray) -> None:
        if self._matcher.is_error():
            mask[:] = 0
            return
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        mask[:] = self._mask[: mask.size]
        clear_tail(mask, self._known_tokens)

    def is_terminated(self) -> bool:
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def rollback(self, num_tokens: int) -> None:
        if not self._matcher.rollback(num_tokens):
            raise ValueError(f"cannot roll back {num_tokens} tokens: {self._matcher.get_error()}")

    def jump_forward(self) -> str:
        return self._matcher.compute_ff_bytes().decode(errors="ignore")


class _Payload(msgspec.Struct):
    tokenizer: str  # tokenizer.json
    known_tokens: int
    vocab_size: int
    stop_ids: list[int]
    any_whitespace: bool
    whitespace_pattern: str | None


def _structural_tag_grammar(text: str) -> str:
    """Free text with tagged parts that follow a schema."""
    from llguidance import StructTag  # optional, heavy

    format_ = read_structural_tag(text)["format"]
    if format_.get("type") != "triggered_tags":
        raise InvalidGrammarError(
            f"llguidance supports structural tags of type triggered_tags, not {format_.get('type')!r}; "
            "use --grammar-backend xgrammar"
        )
    if format_.get("at_least_one") or format_.get("stop_after_first"):
        raise InvalidGrammarError(
            "llguidance does not support at_least_one and stop_after_first; use "
            "--grammar-backend xgrammar"
        )
    tags = [
        StructTag(
            trigger=_trigger_of(tag["begin"], format_["triggers"]),
            begin=tag["begin"],
            grammar=_json_schema_of(tag["content"]),
            end=tag["end"],
        )
        for tag in format_["tags"]
    ]
    if not tags:
        raise InvalidGrammarError("a structural tag needs at least one tag")
    return StructTag.to_grammar(tags, assume_special=False)


def _json_schema_of(content: dict[str, Any]) -> Any:
    if content["type"] != "json_schema":
        raise InvalidGrammarError(
            f"llguidance supports json_schema inside structural tags, not {content['type']!r}; use "
            "--grammar-backend xgrammar"
        )
    return content["json_schema"]


def _trigger_of(begin: str, triggers: list[str]) -> str:
    for trigger in triggers:
        if begin.startswith(trigger):
            return trigger
    raise InvalidGrammarError(f"no trigger starts the tag {begin!r}")
