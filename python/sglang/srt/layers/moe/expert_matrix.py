"""One of the two matrices of a layer of experts, whatever it is stored as, and what happens between the two.

Legend: E experts of this rank, N outputs, K inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.quantization.fp8_math import block_linear, channel_linear

# Activations that kernels know.
FUSED_ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2")


@dataclass(frozen=True)
class ExpertMatrix:
    """`weight` [E, N, K], of numbers or of codes with `scale` float32: [E, N, 1], or one for each block of `block_size` (rows, columns).

    `bias` [E, N]. `input_scale` float32 [E, 1]: what inputs are rounded with; without it codes have a scale for each row of inputs, and
    blocks take inputs as they are.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    block_size: tuple[int, int] | None = None
    input_scale: torch.Tensor | None = None

    @property
    def kind(self) -> str:
        """ "plain", "channel" or "block"."""
        if self.scale is None:
            return "plain"
        return "channel" if self.block_size is None else "block"

    def product(self, rows: torch.Tensor, expert: int) -> torch.Tensor:
        """Rows [n, K] times one expert's matrix in plain torch, [n, N]."""
        weight = self.weight[expert]
        bias = None if self.bias is None else self.bias[expert]
        if self.scale is None:
            return F.linear(rows, weight, bias)
        if self.block_size is not None:
            return block_linear(rows, weight, self.scale[expert], list(self.block_size), bias)
        given = None if self.input_scale is None else self.input_scale[expert]
        return channel_linear(rows, weight, self.scale[expert], given, bias)


@dataclass(frozen=True)
class Gate:
    """The activation between the matrices: `act(gate) * up`, or `act` alone; `alpha`, `limit` as in `MoeRunnerConfig`."""

    activation: str
    is_gated: bool = True
    alpha: float | None = None
    limit: float | None = None

    @classmethod
    def of(cls, config: MoeRunnerConfig) -> Gate:
        return cls(config.activation, config.is_gated, config.gemm1_alpha, config.gemm1_clamp_limit)
