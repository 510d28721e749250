"""Which KV pool a model needs, and what a token of it takes: by `ModelConfig.attention_arch`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sglang.srt.mem_cache.memory_pool import KVPool, MHATokenToKVPool, MLATokenToKVPool

if TYPE_CHECKING:
    from sglang.srt.configs.model_config import ModelConfig


def kv_bytes_per_token(model_config: ModelConfig, tp_size: int, dtype: torch.dtype) -> int:
    """Bytes that one token takes in the pool of a rank, all layers together."""
    facts = model_config.facts
    if facts.mla is not None:
        return MLATokenToKVPool.bytes_per_token(
            facts.mla.kv_lora_rank, facts.mla.qk_rope_head_dim, facts.num_hidden_layers, dtype
        )
    return MHATokenToKVPool.bytes_per_token(
        head_num=model_config.get_num_kv_heads(tp_size),
        head_dim=facts.head_dim,
        layer_num=facts.num_hidden_layers,
        dtype=dtype,
    )


def create_kv_pool(
    model_config: ModelConfig,
    tp_size: int,
    size: int,
    page_size: int,
    dtype: torch.dtype,
    device: str | torch.device,
) -> KVPool:
    """The pool of one of `tp_size` ranks with `size` slots, the padding page included."""
    facts = model_config.facts
    if facts.mla is not None:
        return MLATokenToKVPool(
            size=size,
            page_size=page_size,
            dtype=dtype,
            kv_lora_rank=facts.mla.kv_lora_rank,
            qk_rope_head_dim=facts.mla.qk_rope_head_dim,
            layer_num=facts.num_hidden_layers,
            device=device,
        )
    return MHATokenToKVPool(
        size=size,
        page_size=page_size,
        dtype=dtype,
        head_num=model_config.get_num_kv_heads(tp_size),
        head_dim=facts.head_dim,
        layer_num=facts.num_hidden_layers,
        device=device,
    )
