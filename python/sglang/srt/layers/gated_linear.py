"""The first half of a gated MLP, `act(gate(x)) * up(x)`: two calls, or one kernel where the layers are plain and there is one row."""

from __future__ import annotations

import torch
from torch import nn

from sglang.srt.layers.activation import GeluAndMul, SiluAndMul
from sglang.srt.layers.linear import MergedColumnParallelLinear
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
from sglang.srt.layers.triton_ops import suits_one_row_kernel


def gated_linear(gate_up: nn.Module, act: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """x [T, in] -> [T, d] of the modules `gate_up`, which gives ([T, 2d], bias that is left), and `act`.

    Modules of other classes, and such that somebody watches with hooks, are called.
    """
    if (
        type(gate_up) is MergedColumnParallelLinear
        and type(act) in (SiluAndMul, GeluAndMul)
        and _is_plain(gate_up)
        and not _is_watched(gate_up)
        and not _is_watched(act)
        and suits_one_row_kernel(x, gate_up.weight)
    ):
        from sglang.srt.layers.triton_ops.few_rows import one_row_gated_linear

        return one_row_gated_linear(x, gate_up.weight, gate_up.bias, act.kernel_name)
    product, _ = gate_up(x)
    return act(product)


def _is_plain(layer: MergedColumnParallelLinear) -> bool:
    """Is it nothing but the product with two halves of one size?"""
    sizes = layer.output_partition_sizes
    return (
        type(layer.quant_method) is UnquantizedLinearMethod
        and not layer.gather_output
        and not layer.skip_bias_add
        and len(sizes) == 2
        and sizes[0] == sizes[1]
    )


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
