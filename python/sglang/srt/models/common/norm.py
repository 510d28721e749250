"""The residual stream's one idiom: normalise the sum of a branch's output and the residual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def add_norm(
    norm: Callable[..., Any], hidden_states: torch.Tensor, residual: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(norm(hidden + residual), hidden + residual)`, all `[T, D]`; at the first layer there is no residual.

    `norm` may overwrite both inputs on an accelerator: use only what is returned.
    """
    if residual is None:
        return norm(hidden_states), hidden_states
    return norm(hidden_states, residual)
