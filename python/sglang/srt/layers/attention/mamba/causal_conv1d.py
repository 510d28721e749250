"""The short causal convolution in front of state space and linear attention layers, channel by channel.

    y[c, t] = b[c] + sum_j w[c, j] * x[c, t - (W - 1) + j]

A sequence that goes on where it was left keeps the last W - 1 inputs as its state. Legend: C channels, T tokens of all sequences,
B sequences, W kernel width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def causal_conv1d_fn(
    x: torch.Tensor,  # [C, T]
    weight: torch.Tensor,  # [C, W]
    bias: torch.Tensor | None = None,  # [C]
    query_start_loc: torch.Tensor | None = None,  # [B + 1], where each sequence starts
    cache_indices: torch.Tensor | None = None,  # [B], rows of conv_states
    has_initial_state: torch.Tensor | None = None,  # [B] bool
    conv_states: torch.Tensor | None = None,  # [rows, C, W - 1], updated in place
    activation: str | None = "silu",
    pad_slot_id: int = -1,
    **kwargs: Any,
) -> torch.Tensor:
    """The convolution of whole stretches of sequences, [C, T]. Waits for the device.

    Sequences whose cache index is `pad_slot_id` are padding: their output is zero. Raises ValueError for an unknown activation.
    """
    starts = [0, x.shape[-1]] if query_start_loc is None else query_start_loc.tolist()
    count = len(starts) - 1
    rows = list(range(count)) if cache_indices is None else cache_indices.tolist()
    resumes = [False] * count if has_initial_state is None else has_initial_state.tolist()
    out = torch.zeros_like(x)
    for row, resume, start, end in zip(rows, resumes, starts, starts[1:], strict=False):
        if row == pad_slot_id or start == end:
            continue
        state = None if conv_states is None else conv_states[row]
        before = state if resume and state is not None else None
        out[:, start:end], left = _convolve(x[:, start:end], before, weight, bias, activation)
        if state is not None:
            state.copy_(left)
    return out


def causal_conv1d_update(
    x: torch.Tensor,  # [B, C] or [B, C, n]
    conv_state: torch.Tensor,  # [rows, C, W - 1], updated in place
    weight: torch.Tensor,  # [C, W]
    bias: torch.Tensor | None = None,  # [C]
    activation: str | bool | None = None,
    cache_seqlens: torch.Tensor | None = None,
    conv_state_indices: torch.Tensor | None = None,  # [B], rows of conv_state
    pad_slot_id: int = -1,
) -> torch.Tensor:
    """The convolution of the next token (or n tokens) of every sequence, shaped as `x`. Waits for the device.

    Raises NotImplementedError for `cache_seqlens`, a state kept as a ring.
    """
    if cache_seqlens is not None:
        raise NotImplementedError("a convolution state that is kept as a ring is not implemented")
    name = "silu" if activation is True else (activation or None)
    tokens = x if x.dim() == 3 else x.unsqueeze(-1)
    rows = range(len(x)) if conv_state_indices is None else conv_state_indices.tolist()
    out = torch.zeros_like(tokens)
    for i, row in enumerate(rows):
        if row != pad_slot_id:
            out[i], left = _convolve(tokens[i], conv_state[row], weight, bias, name)
            conv_state[row].copy_(left)
    return out.view(x.shape)


def _convolve(
    x: torch.Tensor,  # [C, n]
    state: torch.Tensor | None,  # [C, W - 1]
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [C, n] and the inputs to keep [C, W - 1] of one sequence."""
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"activation={activation!r} is unknown; allowed: None, silu, swish")
    kept = weight.shape[1] - 1
    before = x.new_zeros(len(x), kept) if state is None else state.to(x.dtype)
    padded = torch.cat([before, x], dim=1)
    out = F.conv1d(padded[None], weight[:, None], bias, groups=len(x))[0]
    left = padded[:, padded.shape[1] - kept :]
    return (out if activation is None else F.silu(out)), left
