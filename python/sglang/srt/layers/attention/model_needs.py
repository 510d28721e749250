"""What a model asks of the attention backend that serves it, as its config tells before it is built.

A backend leaves layers that it has no kernels for to another one. Where that would be most of a model's layers, the other one may as well
have them all: one backend with its memory and its plans instead of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from sglang.srt.configs.hf_config import ModelFacts, to_mapping
from sglang.srt.layers.attention.attention_kind import AttentionKind


class ServedModel(Protocol):
    """The part of a `ModelConfig` that matters here."""

    @property
    def facts(self) -> ModelFacts: ...

    @property
    def hf_config(self) -> object: ...

    @property
    def is_encoder_decoder(self) -> bool: ...


@dataclass(frozen=True)
class ModelNeeds:
    """What most layers of a model are.

    `kind`: attention over the cache, with heads of the whole model. `special`: what makes it other than causal attention over a request's
    own keys. `biased`: what is added to or taken out of its scores.
    """

    kind: AttentionKind
    has_sinks: bool = False
    special: str | None = None
    biased: str | None = None

    @classmethod
    def of(cls, model_config: ServedModel) -> ModelNeeds:
        facts, raw = model_config.facts, to_mapping(model_config.hf_config)
        special = biased = None
        if model_config.is_encoder_decoder:
            special = "slots of encoder tokens before those of a request"
        elif 2 * facts.layer_types.count("chunked_attention") > len(facts.layer_types):
            special = "attention within chunks"
        if raw.get("position_embedding") == "ALIBI":
            biased = "linear biases of scores (ALiBi)"
        elif raw.get("blocksparse_block_size"):
            biased = "block-sparse attention"
        return cls(_kind(facts), facts.model_type == "gpt_oss", special, biased)

    def why_declined(self, name: str) -> str | None:
        """What the backend of this name has no kernels for; None if it has."""
        if name == "triton":
            return self.biased
        if name not in ("flashinfer", "fa3"):
            return None
        from sglang.srt.layers.attention.fa3_backend import Fa3AttnBackend
        from sglang.srt.layers.attention.flashinfer_backend import FlashInferAttnBackend

        backend = FlashInferAttnBackend if name == "flashinfer" else Fa3AttnBackend
        lacking = backend.why_no_kernel(self.kind, self.has_sinks, is_prompts=False)
        return self.biased or self.special or lacking


def _kind(facts: ModelFacts) -> AttentionKind:
    """In a half dtype: flags and memory decide on others."""
    num_kv, dims = facts.num_key_value_heads, (facts.head_dim, facts.head_dim)
    if facts.mla is not None:
        num_kv, dims = 1, (facts.mla.cache_dim, facts.mla.kv_lora_rank)
    return AttentionKind(
        facts.num_attention_heads,
        num_kv,
        *dims,
        scaling=1.0,
        window=-1,
        cap=0.0,
        q_dtype=torch.bfloat16,
        kv_dtype=torch.bfloat16,
    )
