"""A byte-level tokenizer of some hundred tokens, and both grammar backends over it."""

from __future__ import annotations

import importlib

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sglang.srt.constrained.base import GrammarOptions

# Merges that put JSON punctuation, digits and letters into one token.
_PIECES = ['{"', '":', '":Ġ', '",Ġ"', '"}', "tr", "true", "12", "ab", "abc", "ĠĠ", "},"]
VOCAB_SIZE = 320  # padded: more than the tokenizer knows


def _build() -> PreTrainedTokenizerFast:
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for piece in _PIECES:
        vocab[piece] = len(vocab)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["</s>", "<|end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return _build()


@pytest.fixture(scope="session")
def vocab_size() -> int:
    return VOCAB_SIZE


@pytest.fixture(scope="session")
def make_backend(tokenizer):
    """make_backend(name, **options) -> GrammarBackend, in this process."""

    def make(name: str, **options):
        module = importlib.import_module(f"sglang.srt.constrained.{name}_backend")
        eos_ids = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end|>")]
        recipe = module.make_recipe(tokenizer, VOCAB_SIZE, eos_ids, GrammarOptions(**options))
        return recipe.build()

    return make


@pytest.fixture(scope="session", params=["xgrammar", "llguidance"])
def backend(request, make_backend):
    return make_backend(request.param)
