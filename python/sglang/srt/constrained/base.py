"""The seam of structured output: a backend compiles grammars, a compiled grammar hands out matchers.

A backend is described by a `BackendRecipe`, plain data from which the same backend can be built in another process. What one
process has compiled, another can load, so compilation may run where it can be killed.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal, Protocol, get_args

import msgspec
import numpy as np

GrammarKind = Literal["json", "regex", "ebnf", "structural_tag"]
GRAMMAR_KINDS: tuple[str, ...] = get_args(GrammarKind)


class GrammarMatcher(Protocol):
    """Follows the output of one request. Not thread-safe."""

    def accept_token(self, token_id: int) -> bool:
        """Advance by one token; False (nothing changed) when the grammar does not allow it."""

    def fill_mask(self, mask: np.ndarray) -> None:
        """Write the tokens allowed next into `mask`, int32 [ceil(V / 32)], bit t % 32 of word t // 32.

        Once the text may end, stop tokens are allowed; when it must end, they alone are.
        """

    def is_terminated(self) -> bool:
        """True once a stop token was accepted, or when no token can follow."""

    def rollback(self, num_tokens: int) -> None:
        """Undo the last `num_tokens` accepted tokens."""

    def jump_forward(self) -> str:
        """Text that must come next; empty when there is a choice."""


class CompiledGrammar(Protocol):
    """A grammar over one vocabulary. Immutable, shared by requests."""

    def new_matcher(self) -> GrammarMatcher: ...

    def dump(self) -> bytes:
        """For `GrammarBackend.load`."""


class GrammarBackend(Protocol):
    """A grammar library bound to a vocabulary. `compile` and `load` may run in any thread."""

    def compile(self, kind: str, text: str) -> CompiledGrammar:
        """Raises `InvalidGrammarError`. May run long: the text comes from a client."""

    def load(self, data: bytes) -> CompiledGrammar:
        """What `dump` wrote, in this or another process."""


class InvalidGrammarError(ValueError):
    """The text is not a grammar that the backend understands; the message says why."""


class BackendRecipe(msgspec.Struct):
    """How to build a backend: `factory` is "module:function" and takes `payload`."""

    factory: str
    payload: bytes

    def build(self) -> GrammarBackend:
        module, _, name = self.factory.partition(":")
        return getattr(importlib.import_module(module), name)(self.payload)


class GrammarOptions(msgspec.Struct, frozen=True):
    """How JSON may be spaced.

    `any_whitespace` False allows only the compact-with-spaces form of `json.dumps`. `whitespace_pattern` is a regex for the
    space between elements; it is understood by backends that say so.
    """

    any_whitespace: bool = True
    whitespace_pattern: str | None = None


class RecipeMaker(Protocol):
    """Describes a backend for a tokenizer. Raises ValueError when the backend does not support it."""

    def __call__(
        self, tokenizer: Any, vocab_size: int, eos_ids: list[int], options: GrammarOptions
    ) -> BackendRecipe: ...


def mask_words(vocab_size: int) -> int:
    """int32 words of a mask over `vocab_size` tokens."""
    return (vocab_size + 31) // 32


def clear_tail(mask: np.ndarray, num_tokens: int) -> None:
    """Forbid every token of `mask` from `num_tokens` on."""
    word, bit = divmod(num_tokens, 32)
    if bit:
        mask[word] &= (1 << bit) - 1
        word += 1
    mask[word:] = 0
