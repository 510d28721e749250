"""What every attention backend does with the arguments of a layer: check them, join rotary parts, find and write the cache."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch


def check_layer(
    backend: str,
    layer: RadixAttention,
    kwargs: Mapping[str, Any],
    known: Collection[str],
    chunk_size: int | None,
) -> None:
    """Raises ValueError for what a backend that takes the keywords `known` does not have. `chunk_size` is that of the model."""
    unknown = [name for name, value in kwargs.items() if value is not None and name not in known]
    if unknown:
        advice = "" if backend == "torch_native" else "; choose --attention-backend torch_native"
        raise ValueError(
            f"the {backend} attention backend does not support {', '.join(unknown)}{advice}"
        )
    if layer.xai_temperature_len > 0:
        raise ValueError(f"the {backend} attention backend has no xai_temperature_len")
    if layer.use_irope and chunk_size is None:
        raise ValueError("use_irope needs attention_chunk_size in the model config")


def join_rope(
    q: torch.Tensor, k: torch.Tensor | None, layer: RadixAttention, kwargs: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """q as [T, H, d]; rotary parts that come apart are joined to q and k."""
    q_rope, k_rope, num_heads = kwargs.get("q_rope"), kwargs.get("k_rope"), layer.tp_q_head_num
    if q_rope is not None:
        q = torch.cat([x.reshape(len(x), num_heads, -1) for x in (q, q_rope)], dim=-1)
    if k_rope is not None and k is not None:
        k = torch.cat([k, k_rope.reshape(len(k), layer.tp_k_head_num, -1)], dim=-1)
    return q.reshape(-1, num_heads, layer.qk_head_dim), k


def save_new(
    k: torch.Tensor | None, v: torch.Tensor | None, layer: RadixAttention, batch: ForwardBatch
) -> None:
    """Write new keys and values to their slots; those of an encoder-only layer are not kept."""
    if k is None or v is None or layer.attn_type == AttentionType.ENCODER_ONLY:
        return
    loc = batch.encoder_out_cache_loc if layer.is_cross_attention else batch.out_cache_loc
    batch.token_to_kv_pool.set_kv_buffer(layer, loc, k, v)


def pool_buffers(layer: RadixAttention, batch: ForwardBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys [S, K, d] and values [S, K, d_v] of the layer's cache."""
    pool = batch.token_to_kv_pool
    return pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)


def paged_buffers(
    layer: RadixAttention, batch: ForwardBatch, page_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same as pages: views [pages, page, K, d] and [pages, page, K, d_v]."""
    keys, values = pool_buffers(layer, batch)
    return keys.unflatten(0, (-1, page_size)), values.unflatten(0, (-1, page_size))
