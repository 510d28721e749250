"""`RadixAttention`: what a model calls for attention over the cache.

The layer holds the facts of one attention (heads, scale, window); the attention backend of the
batch does the work. Legend: T tokens, H query heads, K kv heads of this rank, d head dim.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from sglang.srt.layers.quantization.base_config import QuantizationConfig
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class AttentionType(Enum):
    """Which tokens see which."""

    DECODER = "decoder"  # causal
    DECODER_BIDIRECTIONAL = "decoder_bidirectional"  # causal, but full within media spans
    ENCODER_ONLY = "encoder_only"  # full; needs no cache


class RadixAttention(nn.Module):
    """One attention layer. Head counts are those of this rank.

    Args:
        scaling: factor of the scores before softmax.
        layer_id: index of the layer's cache, the global layer number.
        logit_cap: scores become `cap * tanh(score / cap)` when positive.
        v_head_dim: width of values, -1 for `head_dim`.
        sliding_window_size: number of earlier tokens that are visible, the token itself not
            counted; -1, 0 or None
            for all.
        is_cross_attention: keys and values belong to encoder tokens.
        use_irope: attention within chunks of the context (Llama 4).
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        scaling: float,
        num_kv_heads: int,
        layer_id: int,
        logit_cap: float = 0.0,
        v_head_dim: int = -1,
        sliding_window_size: int | None = -1,
        is_cross_attention: bool = False,
        pos_encoding_mode: str = "NONE",
        logit_capping_method: str = "tanh",
        quant_config: QuantizationConfig | None = None,
        attn_type: AttentionType = AttentionType.DECODER,
        use_irope: bool = False,
        prefix: str = "",
    ) -> None:
        super().__init__()
        if logit_cap and logit_capping_method != "tanh":
            raise ValueError(f"logit_capping_method={logit_capping_method!r}; supported: tanh")
        self.tp_q_head_num = num_heads
        self.tp_k_head_num = num_kv_heads
        self.tp_v_head_num = num_kv_heads
        self.head_dim = head_dim
        self.qk_head_dim = head_dim
        self.v_head_dim = head_dim if v_head_dim == -1 else v_head_dim
        self.scaling = scaling
        self.layer_id = layer_id
        self.logit_cap = logit_cap
        self.logit_capping_method = logit_capping_method
        self.sliding_window_size = sliding_window_size or -1
        self.is_cross_attention = is_cross_attention
        self.use_irope = use_irope
        self.attn_type = attn_type
        self.pos_encoding_mode = pos_encoding_mode
        self.xai_temperature_len = -1
        self.k_scale: torch.Tensor | None = None
        self.v_scale: torch.Tensor | None = None
        self.k_scale_float: float | None = None
        self.v_scale_float: float | None = None
        self.quant_method = (
            quant_config.get_quant_method(self, prefix) if quant_config is not None else None
        )
        if self.quant_method is not None:
            self.quant_method.create_weights(self)

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """q [T, H * d], k [T, K * d], v [T, K * d_v] -> [T, H * d_v].

        k and v are written to the batch's cache slots first unless `save_kv_cache` is False.
        Without k and v the cache of `layer_id` is read as it is. Other keywords go to the backend,
        which raises for those it does not know.
        """
        if k is not None and v is not None:
            k = k.view(-1, self.tp_k_head_num, k.shape[-1] if k.dim() == 3 else self.qk_head_dim)
            v = v.view(-1, self.tp_v_head_num, self.v_head_dim)
        return forward_batch.attn_backend.forward(
            q, k, v, self, forward_batch, save_kv_cache, **kwargs
        )

    def extra_repr(self) -> str:
        return (
            f"layer_id={self.layer_id}, heads={self.tp_q_head_num}/{self.tp_k_head_num}, "
            f"head_dim={self.head_dim}, scaling={self.scaling}"
        )
