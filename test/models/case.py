"""What a tiny model is: `Case`, and the sizes that all of them start from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

BASE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Case:
    """One tiny model. `config_class` is of transformers; "" for an architecture of `sglang.verify.references`, whose `keys` are the
    whole config.json. `is_fallback`: served by the transformers fallback, whether or not there is a model file.

    `context_length` is the flag it is served with: longrope chooses its factors by it. `prompt_lens`: dynamic rotary frequencies
    equal the reference's only for sequences of exactly the context length. `without`: keys of `BASE` that the family's configs
    do not have.
    """

    config_class: str
    architecture: str
    keys: dict[str, Any] = field(default_factory=dict)
    is_fallback: bool = False
    context_length: int | None = None
    prompt_lens: tuple[int, int] = (40, 13)
    without: tuple[str, ...] = ()
