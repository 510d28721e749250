"""Feed-forward blocks: gated, `down(act(gate(x)) * up(x))` with gate and up in one matrix, and plain,
`down(act(up(x)))`.
"""

from __future__ import annotations

import torch
from torch import nn

from sglang.srt.configs.hf_config import ModelFacts
from sglang.srt.layers.activation import GeluAndMul, SiluAndMul, get_act_fn
from sglang.srt.layers.gated_linear import gated_linear
from sglang.srt.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    RowParallelLinear,
)
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.utils import add_prefix
from sglang.srt.utils.errors import ConfigError


class GatedMLP(nn.Module):
    """SwiGLU-like MLP, split over the tensor-parallel ranks by its intermediate size.

    `hidden_act`: "silu", "gelu" or "gelu_pytorch_tanh"; others raise ValueError.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int | None,
        hidden_act: str,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
        reduce_results: bool = True,
        tp_rank: int | None = None,
        tp_size: int | None = None,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if intermediate_size is None:
            raise ConfigError("config.json has no intermediate_size, which a gated MLP needs")
        self.gate_up_proj = MergedColumnParallelLinear(
            hidden_size,
            [intermediate_size] * 2,
            bias=bias,
            quant_config=quant_config,
            prefix=add_prefix("gate_up_proj", prefix),
            tp_rank=tp_rank,
            tp_size=tp_size,
        )
        self.down_proj = RowParallelLinear(
            intermediate_size,
            hidden_size,
            bias=bias,
            quant_config=quant_config,
            prefix=add_prefix("down_proj", prefix),
            reduce_results=reduce_results,
            tp_rank=tp_rank,
            tp_size=tp_size,
        )
        self.act_fn = _gated_activation(hidden_act)

    @classmethod
    def from_facts(
        cls, facts: ModelFacts, quant_config: QuantizationConfig | None, prefix: str
    ) -> GatedMLP:
        """The block with the config's sizes, activation and `mlp_bias`."""
        return cls(
            facts.hidden_size,
            facts.intermediate_size,
            facts.hidden_act,
            quant_config,
            prefix,
            bias=facts.mlp_bias,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [T, D] -> [T, D]
        return self.multiply(x)

    def multiply(self, x: torch.Tensor, skip_all_reduce: bool = False) -> torch.Tensor:
        """`skip_all_reduce`: this rank's part of the sum, for a caller that adds up later."""
        x = gated_linear(self.gate_up_proj, self.act_fn, x)  # [T, intermediate / tp]
        x, _ = self.down_proj(x, skip_all_reduce=skip_all_reduce)
        return x


class CommunicatedMLP(GatedMLP):
    """The gated MLP beside experts, in the argument order of such files; a `LayerCommunicator` may add up its ranks."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        hidden_act: str,
        quant_config: QuantizationConfig | None = None,
        reduce_results: bool = True,
        prefix: str = "",
        tp_rank: int | None = None,
        tp_size: int | None = None,
    ) -> None:
        super().__init__(
            hidden_size,
            intermediate_size,
            hidden_act,
            quant_config,
            prefix,
            reduce_results,
            tp_rank,
            tp_size,
        )


class PlainMLP(nn.Module):
    """Two matrices with an activation between them, split over the ranks by its intermediate size.

    `hidden_act`: a name (`get_act_fn`'s, or "relu"), or a module of the model's own.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int | None,
        hidden_act: str | nn.Module,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if intermediate_size is None:
            raise ConfigError("config.json has no intermediate_size, which an MLP needs")
        self.up_proj = ColumnParallelLinear(
            hidden_size,
            intermediate_size,
            bias=bias,
            quant_config=quant_config,
            prefix=add_prefix("up_proj", prefix),
        )
        self.down_proj = RowParallelLinear(
            intermediate_size,
            hidden_size,
            bias=bias,
            quant_config=quant_config,
            prefix=add_prefix("down_proj", prefix),
        )
        self.act_fn = _plain_activation(hidden_act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [T, D] -> [T, D]
        x, _ = self.up_proj(x)  # [T, intermediate / tp]
        x, _ = self.down_proj(self.act_fn(x))
        return x


def _plain_activation(act: str | nn.Module) -> nn.Module:
    if isinstance(act, nn.Module):
        return act
    return nn.ReLU() if act == "relu" else get_act_fn(act)


def _gated_activation(name: str) -> nn.Module:
    if name in ("silu", "swish"):
        return SiluAndMul()
    if name in ("gelu_pytorch_tanh", "gelu_new"):
        return GeluAndMul(approximate="tanh")
    if name == "gelu":
        return GeluAndMul(approximate="none")
    raise ValueError(
        f"hidden_act={name!r} is not implemented for a gated MLP; implemented: silu, gelu, gelu_pytorch_tanh"
    )
