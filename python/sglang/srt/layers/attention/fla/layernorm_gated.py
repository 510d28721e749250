"""Norms with a gate, as the output of a linear attention layer uses them.

y = norm(x) * w + b, times silu(z)        with `norm_before_gate`
y = norm(x * silu(z)) * w + b             without
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_GATES = {"silu": F.silu, "swish": F.silu, "sigmoid": torch.sigmoid}


class RMSNorm(nn.Module):
    """Root-mean-square norm over groups of `group_size` channels (None: all of them), with an optional gate.

    Raises ValueError for a gate activation that is not known.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        activation: str = "swish",
    ) -> None:
        super().__init__()
        if activation not in _GATES:
            raise ValueError(
                f"activation={activation!r} is unknown; allowed: {', '.join(sorted(_GATES))}"
            )
        self.eps = eps
        self.group_size = group_size
        self.norm_before_gate = norm_before_gate
        self.activation = activation
        self.weight = nn.Parameter(
            torch.ones(hidden_size, device=device, dtype=dtype), requires_grad=False
        )
        self.register_parameter("bias", None)

    def forward(self, x: torch.Tensor, z: torch.Tensor | None = None) -> torch.Tensor:
        """`x`, `z` and the result have the same shape [..., hidden_size]; computed in float32."""
        return layernorm_fn(
            x,
            self.weight,
            self.bias,
            z,
            self.eps,
            self.group_size,
            self.norm_before_gate,
            is_rms_norm=True,
            activation=self.activation,
        )


def layernorm_fn(
    x: torch.Tensor,  # [..., D]
    weight: torch.Tensor,  # [D]
    bias: torch.Tensor | None = None,  # [D]
    z: torch.Tensor | None = None,  # [..., D]
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
    activation: str = "swish",
) -> torch.Tensor:
    """Layer norm (or root-mean-square norm) by groups of channels, gated by `z`; in float32, returned in x's dtype."""
    values = x.float()
    gate = None if z is None else _GATES[activation](z.float())
    if gate is not None and not norm_before_gate:
        values = values * gate
    grouped = values.unflatten(-1, (-1, group_size or x.shape[-1]))
    if not is_rms_norm:
        grouped = grouped - grouped.mean(dim=-1, keepdim=True)
    variance = grouped.square().mean(dim=-1, keepdim=True)
    out = (grouped * torch.rsqrt(variance + eps)).flatten(-2) * weight.float()
    if bias is not None:
        out = out + bias.float()
    if gate is not None and norm_before_gate:
        out = out * gate
    return out.to(x.dtype)
