"""Grouped-query attention with rotary positions, over the paged KV cache.

    q, k, v = split(Wqkv x);  q, k = rope(norm?(q), norm?(k));  out = Wo softmax(q k^T * scale) v

Legend: T tokens in the batch, D model width, H query heads and K kv heads of this rank, d head dim.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from sglang.srt.configs.hf_config import ModelFacts, RopeFacts
from sglang.srt.distributed import get_tensor_model_parallel_world_size
from sglang.srt.layers.linear import QKVParallelLinear, RowParallelLinear
from sglang.srt.layers.norm_rope import norm_rope_and_store
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.layers.rotary_embedding import get_rope
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.utils import apply_qk_norm
from sglang.srt.utils import add_prefix
from sglang.srt.utils.errors import ConfigError

_Attention = TypeVar("_Attention", bound="GQAttention")


class GQAttention(nn.Module):
    """One layer's attention. Head counts are totals; the tensor-parallel split happens here.

    `sliding_window`: previous tokens visible besides the token itself, -1 for all. `q_norm`/`k_norm`: norms
    over the head dim, applied to every head before the rotation. `use_rope=False`: no rotation. `scaling`:
    factor of the scores, 1 / sqrt(head_dim) by default. `logit_cap`: soft cap of the scores, 0 for none.

    A model whose q, k, v are treated otherwise overrides `split` or `norm_and_rotate`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        layer_id: int,
        *,
        rope_theta: float = 10000.0,
        rope_scaling: dict[str, Any] | None = None,
        rope_is_neox_style: bool = True,
        partial_rotary_factor: float = 1.0,
        max_position_embeddings: int = 8192,
        qkv_bias: bool = False,
        o_bias: bool = False,
        sliding_window: int = -1,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        use_rope: bool = True,
        scaling: float | None = None,
        logit_cap: float = 0.0,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        tp_size = get_tensor_model_parallel_world_size()
        self.head_dim = head_dim
        self.num_heads = num_heads // tp_size
        self.num_kv_heads = max(1, num_kv_heads // tp_size)
        self.q_size = self.num_heads * head_dim
        self.kv_size = self.num_kv_heads * head_dim
        self.qkv_proj = QKVParallelLinear(
            hidden_size,
            head_dim,
            num_heads,
            num_kv_heads,
            bias=qkv_bias,
            quant_config=quant_config,
            prefix=add_prefix("qkv_proj", prefix),
        )
        self.o_proj = RowParallelLinear(
            num_heads * head_dim,
            hidden_size,
            bias=o_bias,
            quant_config=quant_config,
            prefix=add_prefix("o_proj", prefix),
        )
        self.q_norm = q_norm
        self.k_norm = k_norm
        kind = type(self)
        self._is_plain = (  # a subclass that prepares q and k in its own way is left to it
            kind.norm_and_rotate is GQAttention.norm_and_rotate
            and kind.norm_heads is GQAttention.norm_heads
            and kind.rotate is GQAttention.rotate
        )
        self.rotary_emb = None
        if use_rope:
            self.rotary_emb = get_rope(
                head_dim,
                rotary_dim=head_dim,
                max_position=max_position_embeddings,
                base=rope_theta,
                is_neox_style=rope_is_neox_style,
                rope_scaling=rope_scaling,
                partial_rotary_factor=partial_rotary_factor,
            )
        self.attn = RadixAttention(
            self.num_heads,
            head_dim,
            head_dim**-0.5 if scaling is None else scaling,
            num_kv_heads=self.num_kv_heads,
            layer_id=layer_id,
            logit_cap=logit_cap,
            sliding_window_size=sliding_window,
            quant_config=quant_config,
            prefix=add_prefix("attn", prefix),
        )

    @classmethod
    def from_facts(
        cls: type[_Attention],
        facts: ModelFacts,
        layer_id: int,
        quant_config: QuantizationConfig | None,
        prefix: str,
        *,
        use_rope: bool = True,
        **options: Any,
    ) -> _Attention:
        """One layer's attention with the config's sizes and rotary settings (those of the layer's type, where
        types differ); `options` are those of the constructor."""
        rotary = rope_arguments(facts, facts.rope_of_layer(layer_id)) if use_rope else {}
        return cls(
            facts.hidden_size,
            facts.num_attention_heads,
            facts.num_key_value_heads,
            facts.head_dim,
            layer_id,
            use_rope=use_rope,
            quant_config=quant_config,
            prefix=prefix,
            **rotary,
            **options,
        )

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, forward_batch: ForwardBatch
    ) -> torch.Tensor:  # [T], [T, D] -> [T, D]
        qkv, _ = self.qkv_proj(hidden_states)  # [T, (H + 2K) * d]
        q, k, v = self.split(qkv)
        is_saved = self._is_plain and norm_rope_and_store(
            positions, q, k, v, self.attn, forward_batch, self.rotary_emb, self.q_norm, self.k_norm
        )
        if not is_saved:
            q, k = self.norm_and_rotate(positions, q, k)
        attended = self.attn(q, k, v, forward_batch, save_kv_cache=not is_saved)
        output, _ = self.o_proj(attended)  # [T, H * d] -> [T, D]
        return output

    def split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The projection `[T, (H + 2K) * d]` as q `[T, H * d]`, k and v `[T, K * d]`."""
        return qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)

    def norm_and_rotate(
        self, positions: torch.Tensor, q: torch.Tensor, k: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """q and k as attention takes them: normed head by head, then rotated, as far as the model has either."""
        return self.rotate(positions, *self.norm_heads(q, k))

    def norm_heads(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.q_norm is None or self.k_norm is None:
            return q, k
        return apply_qk_norm(q, k, self.q_norm, self.k_norm, self.head_dim)

    def rotate(
        self, positions: torch.Tensor, q: torch.Tensor, k: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return (q, k) if self.rotary_emb is None else self.rotary_emb(positions, q, k)


def rope_arguments(facts: ModelFacts, rope: RopeFacts | None = None) -> dict[str, Any]:
    """The rotary keyword arguments of `GQAttention`: those of `rope`, by default the model's one set."""
    rope = rope or facts.rope
    if rope is None:
        raise ConfigError(
            f"model_type {facts.model_type!r} has no single set of rotary settings "
            "(rope_theta or rope_parameters) in its config.json"
        )
    return {
        "rope_theta": rope.theta,
        "rope_scaling": rope.scaling,
        "partial_rotary_factor": rope.partial_rotary_factor,
        "max_position_embeddings": facts.max_position_embeddings,
    }
