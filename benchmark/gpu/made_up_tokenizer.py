"""A byte-level tokenizer of any size without training: all bytes, then words of four letters with a space before them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from string import ascii_lowercase

FIRST_WORD = 256  # ids below are single bytes
_END = "<|end|>"


def write_tokenizer(folder: Path, vocab_size: int, end_id: int) -> None:
    """tokenizer.json and its config in `folder`; id `end_id` ends a text. Raises ValueError for sizes that there are not enough words for."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    words = ("Ġ" + "".join(letters) for letters in itertools.product(ascii_lowercase, repeat=4))
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *itertools.islice(words, vocab_size)]
    if not FIRST_WORD < vocab_size <= len(tokens):
        raise ValueError(f"vocab_size={vocab_size} must be from {FIRST_WORD + 1} to {len(tokens)}")
    tokens[end_id] = _END
    vocab = {token: index for index, token in enumerate(tokens[:vocab_size])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(_END, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": _END}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
