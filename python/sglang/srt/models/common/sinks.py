"""Attention with a sink: every head has one more score, learned and without a value, that takes weight from the keys.

Legend: T tokens in the batch, D model width, H query heads of this rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sglang.srt.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)
from sglang.srt.layers.parameter import mark_filled
from sglang.srt.layers.weight_placement import copy_into, slice_for_rank
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.utils import set_weight_attrs


class SinkAttention(GQAttention):
    """Grouped-query attention whose softmax also runs over `sinks` [H], in the dtype of the model."""

    def __init__(self, *sizes: int, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.sinks = nn.Parameter(torch.empty(self.num_heads), requires_grad=False)
        set_weight_attrs(self.sinks, {"weight_loader": load_heads})

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, forward_batch: ForwardBatch
    ) -> torch.Tensor:  # [T], [T, D] -> [T, D]
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = self.split(qkv)
        q, k = self.norm_and_rotate(positions, q, k)
        output, _ = self.o_proj(self.attn(q, k, v, forward_batch, sinks=self.sinks))
        return output


def load_heads(param: nn.Parameter, loaded_weight: torch.Tensor) -> None:
    """Copy this rank's heads out of a tensor with one number for each head of all ranks."""
    rank, num_ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
    part = slice_for_rank(loaded_weight, 0, len(param), rank, num_ranks, "sinks")
    copy_into(param.data, part, "sinks")
    mark_filled(param)
