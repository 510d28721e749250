"""What distinguishes one layer's attention from another's, for backends that plan it, and what such a backend leaves to others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch

# Keywords of rotary parts that come apart from the rest.
ROPE_PARTS = ("q_rope", "k_rope")
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
    known = ("sinks", *ROPE_PARTS)
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
