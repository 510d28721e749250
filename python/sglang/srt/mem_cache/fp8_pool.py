"""KV pools in eight-bit floating point: half the memory and traffic of bfloat16.

A slot holds `value / scale`, rounded; values out of range become the largest code. Scales are the layer's, `k_scale` and `v_scale`, 1
where it has none; who reads multiplies by them.
"""

from __future__ import annotations

from typing import Protocol

import torch

from sglang.srt.layers.triton_ops import has_triton
from sglang.srt.mem_cache.memory_pool import (
    AttentionLayer,
    MHATokenToKVPool,
    MLATokenToKVPool,
)

FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
Scale = float | torch.Tensor | None


class ScaledAttentionLayer(AttentionLayer, Protocol):
    """What an fp8 pool needs to know of the layer that writes to it."""

    k_scale: torch.Tensor | None
    v_scale: torch.Tensor | None
    k_scale_float: float | None
    v_scale_float: float | None


class Fp8MHATokenToKVPool(MHATokenToKVPool):
    """Keys and values, each with a scale of its own."""

    dtypes = FP8_DTYPES

    def set_kv_buffer(  # type: ignore[override]
        self,
        layer: ScaledAttentionLayer,
        loc: torch.Tensor,
        cache_k: torch.Tensor,
        cache_v: torch.Tensor,
        k_scale: Scale = None,
        v_scale: Scale = None,
    ) -> None:
        """See `KVPool`. Scales that are not given are the layer's."""
        # The layer's own as numbers, which is how they are read.
        if k_scale is None or k_scale is layer.k_scale:
            k_scale = layer.k_scale_float
        if v_scale is None or v_scale is layer.v_scale:
            v_scale = layer.v_scale_float
        _store(self.get_key_buffer(layer.layer_id), loc, cache_k, k_scale)
        _store(self.get_value_buffer(layer.layer_id), loc, cache_v, v_scale)


class Fp8MLATokenToKVPool(MLATokenToKVPool):
    """Latents and rotated keys, with one scale: values are a part of the keys."""

    dtypes = FP8_DTYPES

    def set_kv_buffer(  # type: ignore[override]
        self,
        layer: ScaledAttentionLayer,
        loc: torch.Tensor,
        cache_k: torch.Tensor,
        cache_v: torch.Tensor,
        k_scale: Scale = None,
        v_scale: Scale = None,
    ) -> None:
        """See `MLATokenToKVPool`. A scale that is not given is the layer's; that of the values is not used."""
        if k_scale is None or k_scale is layer.k_scale:
            k_scale = layer.k_scale_float
        _store(self.get_key_buffer(layer.layer_id), loc, cache_k, k_scale)

    def set_mla_kv_buffer(  # type: ignore[override]
        self,
        layer: ScaledAttentionLayer,
        loc: torch.Tensor,
        cache_k_nope: torch.Tensor,
        cache_k_rope: torch.Tensor,
    ) -> None:
        parts = (cache_k_nope.flatten(1), cache_k_rope.flatten(1))
        latents = torch.cat(parts, dim=-1)
        _store(self.get_key_buffer(layer.layer_id), loc, latents, layer.k_scale_float)


def to_codes(values: torch.Tensor, dtype: torch.dtype, scale: Scale) -> torch.Tensor:
    """What a pool of `dtype` keeps of values. NaN stays NaN."""
    largest = torch.finfo(dtype).max
    scaled = values.float() if scale is None else values.float() / scale
    return scaled.clamp(-largest, largest).to(dtype)


def _store(buffer: torch.Tensor, loc: torch.Tensor, values: torch.Tensor, scale: Scale) -> None:
    if buffer.is_cuda and not isinstance(scale, torch.Tensor) and has_triton():
        from sglang.srt.layers.triton_ops.fp8 import store_codes_kernel

        store_codes_kernel(values, buffer, loc, 1.0 if scale is None else scale)
        return
    codes = to_codes(values, buffer.dtype, scale).reshape(-1, *buffer.shape[1:])
    # As bytes: not every device writes by index in these dtypes.
    buffer.view(torch.uint8)[loc] = codes.view(torch.uint8)
