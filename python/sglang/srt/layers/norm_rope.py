"""The way of q, k and v from their projection to attention, in one go: one kernel on a GPU, one pass over q and k on a CPU.

Layers call `norm_rope_and_store` first and go their own way, norm by norm, when it declines.
"""

from __future__ import annotations

from typing import Any

import torch

from sglang.srt.layers.layernorm import RMSNorm, rms_normalize
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding, apply_rotation
from sglang.srt.layers.rotary_embedding.mrope import MRotaryEmbedding
from sglang.srt.layers.triton_ops import has_triton

_DIMS = (32, 64, 128, 256)


def norm_rope_and_store(
    positions: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attn: RadixAttention,
    forward_batch: Any,
    rotary_emb: Any,
    q_norm: Any,
    k_norm: Any,
) -> bool:
    """Norm every head of q [T, H * d] and k [T, K * d], rotate them, and write k and v to the cache of `attn`.

    True: done, q and k in place, and attention must not write to the cache again. False: nothing was changed, because the device,
    the dtype, the kind of norm or rotation, or the pool asks for the separate layers. The result is the same either way.
    """
    on_gpu = q.is_cuda and has_triton()
    # In float32, in which models are compared with their reference, every norm is called by itself.
    on_cpu = q.is_cpu and q.dtype != torch.float32 and _are_neighbours(q, k)
    if not (on_gpu or on_cpu):
        return False
    pool = forward_batch.token_to_kv_pool
    suits = (
        _suits_rope(rotary_emb, positions, attn)
        and _suits_norms(q_norm, k_norm, attn)
        and _suits_pool(pool, q, k, v)
    )
    if not suits:
        return False
    table, rows = rotary_emb.table_of(positions, forward_batch)
    if on_cpu:
        cos_sin = table.index_select(0, rows)
        _norm_and_rotate(cos_sin, q, k, attn, rotary_emb.is_neox_style, q_norm, k_norm)
        k, v = (part.view(len(part), -1, attn.qk_head_dim) for part in (k, v))
        pool.set_kv_buffer(attn, forward_batch.out_cache_loc, k, v)
        return True
    from sglang.srt.layers.triton_ops.norm_rope import HeadNorm, norm_rope_store

    norm = None
    if q_norm is not None:
        norm = HeadNorm(q_norm.weight, k_norm.weight, q_norm.variance_epsilon)
    norm_rope_store(
        q,
        k,
        v,
        rows,
        table,
        norm,
        *pool.get_kv_buffer(attn.layer_id),
        forward_batch.out_cache_loc,
    )
    return True


def _are_neighbours(q: torch.Tensor, k: torch.Tensor) -> bool:
    """Whether q and k are columns of one projection, side by side."""
    follows = k.data_ptr() == q.data_ptr() + q.shape[-1] * q.element_size()
    return q.dim() == 2 and follows and q.stride() == k.stride() and q.stride(1) == 1


def _norm_and_rotate(
    cos_sin: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    attn: RadixAttention,
    is_neox_style: bool,
    q_norm: RMSNorm | None,
    k_norm: RMSNorm | None,
) -> None:
    """q and k, which lie side by side, in place and in float32 inside; `cos_sin` [T, d]."""
    num_heads, head_dim = attn.tp_q_head_num + attn.tp_k_head_num, attn.qk_head_dim
    heads = q.as_strided((len(q), num_heads, head_dim), (q.stride(0), head_dim, 1))
    x = heads.float()
    if q_norm is not None and k_norm is not None:
        x = rms_normalize(x, q_norm.variance_epsilon)
        x[:, : attn.tp_q_head_num].mul_(q_norm.weight)
        x[:, attn.tp_q_head_num :].mul_(k_norm.weight)
    heads.copy_(apply_rotation(x, cos_sin, is_neox_style))


def _suits_pool(pool: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    """Keys and values by slot, in the dtype in which they come."""
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    is_plain = type(pool) is MHATokenToKVPool and pool.dtype == q.dtype == v.dtype
    return is_plain and q.stride(-1) == k.stride(-1) == v.stride(-1) == 1


def _suits_rope(rotary_emb: Any, positions: torch.Tensor, attn: RadixAttention) -> bool:
    """A table by one position or by three that rotates whole heads, pairing the halves."""
    return (
        type(rotary_emb) in (RotaryEmbedding, MRotaryEmbedding)
        and (positions.dim() == 1 or type(rotary_emb) is MRotaryEmbedding)
        and rotary_emb.is_neox_style
        and rotary_emb.rotary_dim == rotary_emb.head_size == attn.qk_head_dim == attn.v_head_dim
        and attn.qk_head_dim in _DIMS
        and not attn.is_cross_attention
        and attn.attn_type != AttentionType.ENCODER_ONLY
    )


def _suits_norms(q_norm: Any, k_norm: Any, attn: RadixAttention) -> bool:
    """No norms, or two plain RMS norms over the head dim."""
    if q_norm is None and k_norm is None:
        return True
    return (
        _is_plain(q_norm, attn)
        and _is_plain(k_norm, attn)
        and q_norm.variance_epsilon == k_norm.variance_epsilon
    )


def _is_plain(norm: Any, attn: RadixAttention) -> bool:
    return (
        type(norm) is RMSNorm
        and norm.hidden_size == attn.qk_head_dim
        and norm.has_weight
        and norm.var_hidden_size is None
        and norm.override_orig_dtype is None
        and not norm.cast_x_before_out_mul
    )
