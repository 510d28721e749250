"""The residual stream's one idiom: normalise the sum of a branch's output and the residual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sglang.srt.layers.layernorm import LayerNorm


def add_norm(
    norm: Callable[..., Any], hidden_states: torch.Tensor, residual: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(norm(hidden + residual), hidden + residual)`, all `[T, D]`; at the first layer there is no residual.

    `norm` may overwrite both inputs on an accelerator: use only what is returned.
    """
    if residual is None:
        return norm(hidden_states), hidden_states
    if isinstance(norm, LayerNorm):  # takes no residual
        total = hidden_states + residual
        return norm(total), total
    return norm(hidden_states, residual)


def add_residual(hidden_states: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    """The residual stream `[T, D]` itself, for layers that norm the output of a branch and not its input."""
    return hidden_states if residual is None else hidden_states + residual
