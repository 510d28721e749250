"""What distinguishes one layer's attention from another's, for backends that plan it, and what such a backend leaves to others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch

# Key and value widths of the latent cache that kernels for it are made for.
LATENT_DIMS = (576, 512)


@dataclass(frozen=True)
class AttentionKind:
    """Layers of one kind share a plan. Heads are those of this rank."""

    num_heads: int
    num_kv_heads: int
    dim: int
    v_dim: int
    scaling: float
    window: int  # earlier tokens that are visible, -1 for all
    cap: float  # 0 for none
    q_dtype: torch.dtype
    kv_dtype: torch.dtype  # of the pool
    # Does the pool hold this layer's keys and values? That of expanded latent attention holds latents.
    has_cache: bool = True

    @property
    def is_latent(self) -> bool:
        """Is it attention over a latent cache, whose values are a part of its keys?"""
        return (self.dim, self.v_dim) == LATENT_DIMS and self.num_kv_heads == 1

    @property
    def is_fp8(self) -> bool:
        return self.kv_dtype.itemsize == 1


def kind_of(
    layer: RadixAttention, q_dtype: torch.dtype, cache: tuple[torch.Tensor, torch.Tensor]
) -> AttentionKind:
    """The kind of a layer over keys [..., K, d] and values [..., K, d_v]."""
    num_kv, keys, values = layer.tp_k_head_num, *cache
    fits = keys.shape[-2:] == (num_kv, layer.qk_head_dim)
    return AttentionKind(
        layer.tp_q_head_num,
        layer.tp_k_head_num,
        layer.qk_head_dim,
        layer.v_head_dim,
        layer.scaling,
        layer.sliding_window_size or -1,
        layer.logit_cap or 0.0,
        q_dtype,
        keys.dtype,
        fits and values.shape[-2:] == (num_kv, layer.v_head_dim),
    )


def why_not_plain(
    layer: RadixAttention, batch: ForwardBatch, kwargs: dict[str, Any], has_mask: bool
) -> str | None:
    """What keeps a layer from being causal attention over the cache of its own request; None if it is just that.

    A window, a logit cap and the keywords `sinks`, `q_rope` and `k_rope` are not looked at.
    """
    known = ("sinks", "q_rope", "k_rope")
    unknown = [name for name, value in kwargs.items() if value is not None and name not in known]
    if unknown:
        return f"arguments {', '.join(unknown)}"
    if layer.attn_type == AttentionType.ENCODER_ONLY:
        return "attention of an encoder"
    if layer.is_cross_attention:
        return "cross-attention"
    if batch.encoder_lens_cpu is not None or batch.encoder_lens is not None:
        return "slots of encoder tokens before those of a request"
    if layer.use_irope:
        return "attention within chunks"
    if layer.xai_temperature_len > 0:
        return "temperature by position"
    is_bidirectional = layer.attn_type == AttentionType.DECODER_BIDIRECTIONAL
    if is_bidirectional and any(batch.bidirectional_spans or ()):
        return "full attention within image spans"
    return "a custom mask" if has_mask else None


def join_rope(
    q: torch.Tensor, k: torch.Tensor | None, layer: RadixAttention, kwargs: dict[str, Any]
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
    """Write new keys and values to their slots."""
    if k is None or v is None:
        return
    pool, loc = batch.token_to_kv_pool, batch.out_cache_loc
    if pool.get_key_buffer(layer.layer_id).element_size() == 1:
        pool.set_kv_buffer(layer, loc, k, v, layer.k_scale, layer.v_scale)
    else:
        pool.set_kv_buffer(layer, loc, k, v)


def paged_buffers(
    layer: RadixAttention, batch: ForwardBatch, page_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys [pages, page, K, d] and values [pages, page, K, d_v] of the layer's cache: views of the pool."""
    pool, layer_id = batch.token_to_kv_pool, layer.layer_id
    keys, values = pool.get_key_buffer(layer_id), pool.get_value_buffer(layer_id)
    return keys.unflatten(0, (-1, page_size)), values.unflatten(0, (-1, page_size))
