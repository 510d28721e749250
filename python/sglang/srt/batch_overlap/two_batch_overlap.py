"""Two half batches in turn, one computing and one communicating. Compatibility: the layers run one after the other on the whole batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from sglang.srt.utils.absent import absent_class

MaybeTboDeepEPDispatcher = absent_class(
    "MaybeTboDeepEPDispatcher", "DeepEP all-to-all between ranks"
)


def model_forward_maybe_tbo(
    layers: Iterable[torch.nn.Module],
    enable_tbo: bool,
    positions: torch.Tensor,
    forward_batch: Any,
    hidden_states: torch.Tensor,  # [T, D]
    input_data_scatter_mode: Any,
    residual: torch.Tensor | None,  # [T, D]
    zero_allocator: Any = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The layers in order, `(hidden_states, residual)` of the last: overlapping would give the same numbers."""
    extra = {} if zero_allocator is None else {"zero_allocator": zero_allocator}
    for layer in layers:
        hidden_states, residual = layer(
            positions=positions,
            hidden_states=hidden_states,
            forward_batch=forward_batch,
            residual=residual,
            **extra,
        )
    return hidden_states, residual
