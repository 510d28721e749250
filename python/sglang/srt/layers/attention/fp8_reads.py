"""Keys and values of a cache in eight-bit floating point as ordinary numbers, for attention in plain torch."""

from __future__ import annotations

import torch

from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.mem_cache.fp8_pool import to_codes
from sglang.srt.mem_cache.memory_pool import KVPool


def decoded(stored: torch.Tensor, dtype: torch.dtype, scale: float | None) -> torch.Tensor:
    """What a pool keeps, in `dtype`; `scale` is that of an fp8 pool, other pools have none."""
    if stored.element_size() > 1 or scale is None:
        return stored.to(dtype)
    return stored.to(dtype) * scale


def as_stored(
    k: torch.Tensor, v: torch.Tensor, layer: RadixAttention, pool: KVPool
) -> tuple[torch.Tensor, torch.Tensor]:
    """New keys and values as later steps will read them, so that results do not depend on where a prompt is cut into chunks."""
    if layer.attn_type == AttentionType.ENCODER_ONLY:
        return k, v
    dtype = pool.get_key_buffer(layer.layer_id).dtype
    if dtype.itemsize > 1:
        return k, v
    k_scale, v_scale = layer.k_scale_float, layer.v_scale_float
    keys, values = to_codes(k, dtype, k_scale), to_codes(v, dtype, v_scale)
    return decoded(keys, k.dtype, k_scale), decoded(values, v.dtype, v_scale)
