"""Attention of vision towers: every row sees every row of its own image, no cache.

Legend: b rows of a batch with s patches each, H heads of this rank, d head dim, E width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sglang.srt.distributed import divide
from sglang.srt.layers.dp_attention import (
    get_attention_tp_group,
    get_attention_tp_rank,
    get_attention_tp_size,
)
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.linear import QKVParallelLinear, RowParallelLinear
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.layers.rotary_embedding import apply_rotary_pos_emb
from sglang.srt.layers.triton_ops import has_triton
from sglang.srt.server_args import get_global_server_args
from sglang.srt.utils import add_prefix
from sglang.srt.utils.errors import ConfigError
from sglang.srt.utils.upload import upload

PositionEmbeddingApplier = Callable[..., tuple[torch.Tensor, torch.Tensor]]


class SingletonCache:
    """A value that the first layer computes and the others read."""

    def __init__(self, data: Any = None) -> None:
        self.data = data

    def set_data(self, value: Any) -> None:
        self.data = value

    def get_data(self) -> Any:
        return self.data

    def empty(self) -> bool:
        return self.data is None


class VisionAttention(nn.Module):
    """Projections, norms of q and k, rotary positions, and scaled dot products within each image.

    Args:
        num_dummy_heads: heads of zeros, to make the number of heads a multiple of the ranks.
        qk_normalization: RMS norm over all heads together; `qk_normalization_by_head_size` over each.
        customized_position_embedding_applier: `(q, k, position_embeddings, x_shape) -> (q, k)` instead of rotary positions.
        use_data_parallel: every rank holds all heads.
        qkv_backend: "triton_attn" for one kernel over all sequences, where x is on a GPU; anything else is torch's attention, sequence
            by sequence. `--mm-attention-backend` wins over it. A mask of the caller's always goes to torch's.
        softmax_in_single_precision, flatten_batch, dropout, aux_stream: accepted; sequences are always told apart by `cu_seqlens`, and
            both kinds of attention accumulate in float32.

    Raises ConfigError for `use_qkv_parallel=False`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        projection_size: int,
        use_qkv_parallel: bool,
        qkv_backend: str | None = None,
        quant_config: QuantizationConfig | None = None,
        dropout: float = 0.0,
        softmax_in_single_precision: bool = False,
        flatten_batch: bool = False,
        prefix: str = "",
        proj_bias: bool = True,
        num_dummy_heads: int = 0,
        qkv_bias: bool = True,
        qk_normalization: bool = False,
        qk_normalization_by_head_size: bool = False,
        layer_norm_eps: float = 1e-6,
        customized_position_embedding_applier: PositionEmbeddingApplier | None = None,
        use_data_parallel: bool = False,
        use_dp_attention_reduce: bool = False,
        aux_stream: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if not use_qkv_parallel:
            raise ConfigError("VisionAttention supports use_qkv_parallel=True only")
        self.backend = _asked_backend() or qkv_backend or "sdpa"
        self.tp_size = 1 if use_data_parallel else get_attention_tp_size()
        self.tp_rank = 0 if use_data_parallel else get_attention_tp_rank()
        self.head_size = divide(embed_dim, num_heads)
        total_heads = num_heads + num_dummy_heads
        self.num_attention_heads_per_partition = divide(total_heads, self.tp_size)
        self.qk_normalization = qk_normalization
        self.qk_normalization_by_head_size = qk_normalization_by_head_size
        self.customized_position_embedding_applier = customized_position_embedding_applier
        if qk_normalization:
            width = total_heads * self.head_size
            self.q_norm = RMSNorm(width, eps=layer_norm_eps, var_hidden_size=embed_dim)
            self.k_norm = RMSNorm(width, eps=layer_norm_eps, var_hidden_size=embed_dim)
        elif qk_normalization_by_head_size:
            self.q_norm = RMSNorm(self.head_size, eps=layer_norm_eps)
            self.k_norm = RMSNorm(self.head_size, eps=layer_norm_eps)
        self.qkv_proj = QKVParallelLinear(
            hidden_size=embed_dim,
            head_size=self.head_size,
            total_num_heads=total_heads,
            bias=qkv_bias,
            quant_config=quant_config,
            prefix=add_prefix("qkv_proj", prefix),
            tp_rank=self.tp_rank,
            tp_size=self.tp_size,
        )
        self.proj = RowParallelLinear(
            input_size=total_heads * self.head_size,
            output_size=embed_dim,
            bias=proj_bias,
            quant_config=quant_config,
            prefix=add_prefix("proj", prefix),
            tp_rank=self.tp_rank,
            tp_size=self.tp_size,
            use_dp_attention_reduce=use_dp_attention_reduce,
        )

    def forward(
        self,
        x: torch.Tensor,  # [b, s, E] or [s, E], which counts as b = 1
        cu_seqlens: torch.Tensor | SingletonCache | None = None,  # int32 [n + 1] over b * s rows
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        rotary_pos_emb_cos: torch.Tensor | None = None,
        rotary_pos_emb_sin: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,  # bool, to [b, 1, s, s]; true: attend
        **kwargs: Any,
    ) -> torch.Tensor:  # [b, s, E]
        """`position_embeddings`: cos and sin, each [b * s, d], or [b * s, d / 2] for both halves."""
        if x.dim() == 2:
            x = x[None]
        b, s, _ = x.shape
        qkv, _ = self.qkv_proj(x)
        q, k, v = (part.reshape(b * s, -1) for part in qkv.chunk(3, dim=-1))
        if self.qk_normalization:
            q, k = self._norm_whole(q, self.q_norm), self._norm_whole(k, self.k_norm)
        heads = (-1, self.num_attention_heads_per_partition, self.head_size)
        q, k, v = q.reshape(heads), k.reshape(heads), v.reshape(heads)
        if self.qk_normalization_by_head_size and not self.qk_normalization:
            q, k = self.q_norm(q.contiguous()), self.k_norm(k.contiguous())
        if rotary_pos_emb_cos is not None and rotary_pos_emb_sin is not None:
            position_embeddings = (rotary_pos_emb_cos, rotary_pos_emb_sin)
        q, k = self._add_positions(q, k, position_embeddings, x.shape)
        if attention_mask is not None:
            out = self._attend_masked(q, k, v, attention_mask, b)
        else:
            out = self._attend(q, k, v, _boundaries(cu_seqlens, b, s, x.device))
        out, _ = self.proj(out.reshape(b, s, -1))
        return out

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, boundaries: list[int]
    ) -> torch.Tensor:
        """Full attention inside each sequence, [b * s, H, d]."""
        if self.backend != "triton_attn" or not (q.is_cuda and has_triton()):
            return _attend_by_sequence(q, k, v, boundaries)
        from sglang.srt.layers.triton_ops.vision_attention import attend_within

        starts = upload(boundaries, torch.int32, q.device)
        longest = max(b - a for a, b in itertools.pairwise(boundaries))
        q, k, v = (part.contiguous() for part in (q, k, v))
        return attend_within(q, k, v, starts, longest)

    def _norm_whole(self, x: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
        """Norm over the heads of all ranks, [b * s, H * d]."""
        if self.tp_size == 1:
            return norm(x.contiguous())
        whole = norm(get_attention_tp_group().all_gather(x.contiguous(), dim=-1))
        return whole.chunk(self.tp_size, dim=-1)[self.tp_rank]

    def _add_positions(
        self,
        q: torch.Tensor,  # [b * s, H, d]
        k: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None,
        x_shape: torch.Size,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if position_embeddings is None:
            return q, k
        if self.customized_position_embedding_applier is not None:
            return self.customized_position_embedding_applier(q, k, position_embeddings, x_shape)
        cos, sin = (part.reshape(-1, part.shape[-1]) for part in position_embeddings)
        if cos.shape[-1] * 2 == self.head_size:
            cos, sin = torch.cat([cos, cos], dim=-1), torch.cat([sin, sin], dim=-1)
        return apply_rotary_pos_emb(q, k, cos, sin)

    def _attend_masked(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, b: int
    ) -> torch.Tensor:
        """Attention with the caller's mask, [b * s, H, d]."""
        q, k, v = (part.unflatten(0, (b, -1)).transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.device))
        return out.transpose(1, 2).flatten(0, 1)


def _asked_backend() -> str | None:
    """`--mm-attention-backend`; None in a process without a server's flags."""
    try:
        return get_global_server_args().mm_attention_backend
    except ValueError:
        return None


def _attend_by_sequence(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, boundaries: list[int]
) -> torch.Tensor:
    """Full attention inside each run of rows, [b * s, H, d]. Neighbours of one length go in one call."""
    out = torch.empty_like(q)
    for start, end, length in _equal_runs(boundaries):
        parts = [x[start:end].unflatten(0, (-1, length)).transpose(1, 2) for x in (q, k, v)]
        found = F.scaled_dot_product_attention(*parts)  # [runs, H, length, d]
        out[start:end] = found.transpose(1, 2).flatten(0, 1)
    return out


def _equal_runs(boundaries: list[int]) -> list[tuple[int, int, int]]:
    """`(first row, end, length)` of stretches of runs that are equally long; empty runs are left out."""
    found: list[tuple[int, int, int]] = []
    for start, end in zip(boundaries, boundaries[1:], strict=False):
        if end == start:
            continue
        if found and found[-1][2] == end - start:
            found[-1] = (found[-1][0], end, end - start)
        else:
            found.append((start, end, end - start))
    return found


def _boundaries(
    cu_seqlens: torch.Tensor | SingletonCache | None, b: int, s: int, device: torch.device
) -> list[int]:
    """First rows of the sequences and the end. Without any, each of the b rows is one. Waits for the device."""
    if isinstance(cu_seqlens, SingletonCache):
        if cu_seqlens.empty():
            cu_seqlens.set_data(torch.arange(0, (b + 1) * s, s, dtype=torch.int32, device=device))
        return cu_seqlens.get_data().tolist()
    if cu_seqlens is None:
        return [s * i for i in range(b + 1)]
    found = cu_seqlens.tolist()
    if found[0] != 0 or found[-1] != b * s:
        raise ValueError(f"cu_seqlens runs from {found[0]} to {found[-1]}; there are {b * s} rows")
    return found
