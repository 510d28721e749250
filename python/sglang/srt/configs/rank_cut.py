"""Into how many tensor-parallel ranks a model can be cut, from its config alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sglang.srt.configs.hf_config import ModelFacts
from sglang.srt.utils.errors import ConfigError

# Embeddings and heads are padded to a multiple of this (`VocabParallelEmbedding`).
_VOCAB_PADDING = 64


def check_heads(facts: ModelFacts, tp_size: int) -> None:
    """Raises ConfigError when the query heads do not divide."""
    heads = facts.num_attention_heads
    if heads % tp_size:
        raise ConfigError(
            f"tp_size={tp_size} does not divide the model's {heads} attention heads; "
            f"use a divisor of {heads}"
        )


def check_cut(facts: ModelFacts, config_dict: Mapping[str, Any], tp_size: int) -> None:
    """Raises ConfigError naming the size that does not divide, and the rank counts that would do.

    What the config does not tell (experts, towers of media), layers check when they are built. `config_dict` is config.json.
    """
    width = None if _has_experts(config_dict) else facts.intermediate_size
    reason = _reason(facts, width, tp_size)
    if reason is None:
        return
    candidates = range(1, facts.num_attention_heads + 1)
    fitting = [str(size) for size in candidates if _reason(facts, width, size) is None]
    raise ConfigError(
        f"tp_size={tp_size} {reason}; give --tp a size that fits this model: {', '.join(fitting)}"
    )


def _reason(facts: ModelFacts, mlp_width: int | None, tp_size: int) -> str | None:
    """Why the model cannot be cut so; None when it can. KV heads may be replicated instead, and a latent is one head on every rank."""
    if facts.num_attention_heads % tp_size:
        return f"does not divide the model's {facts.num_attention_heads} attention heads"
    kv_heads = 1 if facts.mla is not None else facts.num_key_value_heads
    if kv_heads % tp_size and tp_size % kv_heads:
        return f"neither divides the model's {kv_heads} KV heads nor is a multiple of them"
    if mlp_width is not None and mlp_width % tp_size:
        return f"does not divide the model's intermediate_size {mlp_width}"
    padded = -(-facts.vocab_size // _VOCAB_PADDING) * _VOCAB_PADDING
    if padded % tp_size:
        return f"does not divide the model's vocabulary of {facts.vocab_size}, padded to {padded}"
    return None


def _has_experts(config: Any) -> bool:
    """Whether any part of a config speaks of experts: then `intermediate_size` may be of layers that it does not have."""
    if not isinstance(config, Mapping):
        return False
    return any(
        ("expert" in key or "moe" in key) and value or _has_experts(value)
        for key, value in config.items()
    )
