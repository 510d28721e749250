"""Weights as they are: `y = x W^T + b` with torch's own matrix product, or ours where the rows are few and ours is faster."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.nn import Parameter

from sglang.srt.layers.matmul import linear
from sglang.srt.layers.quantization.base_config import LinearMethodBase, QuantizeMethodBase
from sglang.srt.layers.triton_ops import suits_one_row_kernel
from sglang.srt.utils import set_weight_attrs


class UnquantizedLinearMethod(LinearMethodBase):
    """One floating point weight [out per rank, in per rank]."""

    def leave_plain_weight(self, layer: torch.nn.Module) -> bool:
        return True

    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        layer.register_parameter(
            "weight",
            _create_weight(
                sum(output_partition_sizes),
                input_size_per_partition,
                params_dtype,
                extra_weight_attrs,
            ),
        )

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        if suits_one_row_kernel(x, layer.weight):
            from sglang.srt.layers.triton_ops.few_rows import one_row_linear

            return one_row_linear(x, layer.weight, bias)
        return linear(x, layer.weight, bias, layer.needs_rows)


class UnquantizedEmbeddingMethod(QuantizeMethodBase):
    """A table [rows per rank, width] that can also serve as an output head."""

    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        weight = _create_weight(
            sum(output_partition_sizes), input_size_per_partition, params_dtype, extra_weight_attrs
        )
        layer.register_parameter("weight", weight)

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        return linear(x, layer.weight, bias)

    def embedding(self, layer: torch.nn.Module, input_: torch.Tensor) -> torch.Tensor:
        return F.embedding(input_, layer.weight)


def _create_weight(rows: int, columns: int, dtype: torch.dtype, attrs: dict[str, Any]) -> Parameter:
    weight = Parameter(torch.empty(rows, columns, dtype=dtype), requires_grad=False)
    loader = {"weight_loader": attrs["weight_loader"]} if "weight_loader" in attrs else {}
    set_weight_attrs(weight, {"input_dim": 1, "output_dim": 0, **loader})
    return weight


def __getattr__(name: str) -> Any:
    """`UnquantizedFusedMoEMethod` under this path; late, because the layers of experts import this module."""
    if name != "UnquantizedFusedMoEMethod":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sglang.srt.layers.moe.unquantized import UnquantizedFusedMoEMethod

    return UnquantizedFusedMoEMethod
