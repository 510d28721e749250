"""Tokenizers of a few dozen tokens, built in memory."""

from __future__ import annotations

from functools import lru_cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "Grüße aus Köln: äöü ß, naïve café",
    "你好，世界。今天天气很好 🙂👩‍👩‍👧 ok",
    "def f(x):\n    return x + 1  # done",
]
SPECIALS = [AddedToken("<s>", special=True), AddedToken("</s>", special=True)]


@lru_cache
def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE (GPT-2, Llama 3, Qwen): every byte is a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _finish(tokenizer)


@lru_cache
def metaspace() -> PreTrainedTokenizerFast:
    """SentencePiece-like: words begin with a visible space, which the decoder drops at the start of a text."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=150, show_progress=False))
    return _finish(tokenizer)


@lru_cache
def byte_fallback() -> PreTrainedTokenizerFast:
    """Llama 2 like: visible spaces, and bytes for characters outside the vocabulary."""
    words = ["▁", "▁the", "▁fox", "the", "fox", "x", "y", ",", "▁▁"]
    tokens = ["<unk>", *[f"<0x{i:02X}>" for i in range(256)], *words]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _finish(tokenizer)


@lru_cache
def word_level() -> PreTrainedTokenizerFast:
    """One token per word, `w0` .. `w99`, joined by spaces: scripted outputs are easy to read."""
    vocab = {f"w{i}": i for i in range(100)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return _finish(tokenizer)


def _finish(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.add_tokens([AddedToken("<tool▁call>", normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
