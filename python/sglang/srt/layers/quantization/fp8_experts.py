"""Experts in eight-bit floating point; the kinds of weight are those of `fp8`.

Legend: E experts of this rank, D model width, I inner width of this rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Parameter

from sglang.srt.layers.moe.expert_matrix import ExpertMatrix
from sglang.srt.layers.moe.unquantized import (
    ExpertsMethod,
    UnquantizedFusedMoEMethod,
    get_biases,
)
from sglang.srt.layers.parameter import mark_filled
from sglang.srt.layers.quantization.block_scales import fp8_dtype
from sglang.srt.layers.quantization.fp8_loading import check_blocks, only_fp8, refuse_update
from sglang.srt.layers.quantization.fp8_math import round_weight
from sglang.srt.layers.weight_placement import copy_into, slice_for_rank
from sglang.srt.utils import ceil_div, set_weight_attrs


class OnlineFp8ExpertsMethod(UnquantizedFusedMoEMethod):
    """Loads plain weights, then rounds each expert's: `*_weight` codes, `*_weight_scale` float32 [E, N, 1]."""

    def __init__(self, weight_scheme: str) -> None:
        super().__init__()
        self._weight_scheme = weight_scheme

    def process_weights_after_loading(self, layer: Any) -> None:
        for name in ("w13_weight", "w2_weight"):
            weight = getattr(layer, name).data
            codes = torch.empty_like(weight, dtype=fp8_dtype)
            scales = torch.empty(*weight.shape[:2], 1, dtype=torch.float32, device=weight.device)
            for expert in range(weight.shape[0]):
                codes[expert], scales[expert] = round_weight(weight[expert], self._weight_scheme)
            _register(layer, name, codes, weight_loader=refuse_update)
            _register(layer, f"{name}_scale", scales)

    def get_matrices(self, layer: Any) -> tuple[ExpertMatrix, ExpertMatrix]:
        b13, b2 = get_biases(layer)
        return (
            ExpertMatrix(layer.w13_weight, b13, layer.w13_weight_scale),
            ExpertMatrix(layer.w2_weight, b2, layer.w2_weight_scale),
        )


class _StoredFp8ExpertsMethod(ExpertsMethod):
    """Codes `w13_weight [E, 2I, D]` and `w2_weight [E, D, I]`, with biases on request."""

    def create_weights(
        self,
        layer: Any,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """As of `UnquantizedFusedMoEMethod`. Raises ConfigError where a rank's part would split a block."""
        loader, inner = extra_weight_attrs["weight_loader"], intermediate_size_per_partition
        num_halves = 2 if extra_weight_attrs.get("is_gated", True) else 1
        shapes = {"w13": (num_halves * inner, hidden_size), "w2": (hidden_size, inner)}
        for name, shape in shapes.items():
            codes = torch.empty(num_experts, *shape, dtype=fp8_dtype)
            _register(layer, f"{name}_weight", codes, weight_loader=only_fp8(loader))
            if extra_weight_attrs.get("with_bias", False):
                bias = torch.empty(num_experts, shape[0], dtype=params_dtype)
                _register(layer, f"{name}_weight_bias", bias, weight_loader=loader)
        self._create_scales(layer, num_experts, hidden_size, inner, num_halves)

    def _create_scales(
        self, layer: Any, num_experts: int, hidden_size: int, inner: int, num_halves: int
    ) -> None:
        raise NotImplementedError


class ChannelFp8ExpertsMethod(_StoredFp8ExpertsMethod):
    """`*_weight_scale` float32 [E, N, 1], from scales of rows or of whole matrices; `*_input_scale` [E, parts] where activations have
    a stored scale."""

    def __init__(self, is_static: bool) -> None:
        super().__init__()
        self._is_static = is_static

    def _create_scales(
        self, layer: Any, num_experts: int, hidden_size: int, inner: int, num_halves: int
    ) -> None:
        load = _ScaleLoader(layer, cuts_w2=False, may_repeat=True)
        for name, rows in (("w13", num_halves * inner), ("w2", hidden_size)):
            _register(layer, f"{name}_weight_scale", _scales(num_experts, rows, 1), load)
        if self._is_static:
            for name, parts in (("w13", num_halves), ("w2", 1)):
                _register(layer, f"{name}_input_scale", _scales(num_experts, parts), load)

    def process_weights_after_loading(self, layer: Any) -> None:
        if self._is_static:
            for name in ("w13_input_scale", "w2_input_scale"):
                # Gate and up have one input, so one scale.
                _register(layer, name, getattr(layer, name).data.amax(dim=1, keepdim=True))

    def get_matrices(self, layer: Any) -> tuple[ExpertMatrix, ExpertMatrix]:
        b13, b2 = get_biases(layer)
        in13, in2 = (
            (layer.w13_input_scale, layer.w2_input_scale) if self._is_static else (None, None)
        )
        return (
            ExpertMatrix(layer.w13_weight, b13, layer.w13_weight_scale, input_scale=in13),
            ExpertMatrix(layer.w2_weight, b2, layer.w2_weight_scale, input_scale=in2),
        )


class BlockFp8ExpertsMethod(_StoredFp8ExpertsMethod):
    """`*_weight_scale_inv` float32 [E, ceil(N / rows), ceil(K / columns)]."""

    def __init__(self, block_size: list[int]) -> None:
        super().__init__()
        self._block_size = block_size

    def _create_scales(
        self, layer: Any, num_experts: int, hidden_size: int, inner: int, num_halves: int
    ) -> None:
        rows, columns = self._block_size
        if num_halves > 1 or layer.moe_tp_size > 1:
            check_blocks([inner], rows, "output", layer.prefix)
        if layer.moe_tp_size > 1:
            check_blocks([inner], columns, "input", layer.prefix)
        load = _ScaleLoader(layer, cuts_w2=True, may_repeat=False)
        for name, shape in (
            ("w13", (num_halves * inner, hidden_size)),
            ("w2", (hidden_size, inner)),
        ):
            scales = _scales(num_experts, ceil_div(shape[0], rows), ceil_div(shape[1], columns))
            _register(layer, f"{name}_weight_scale_inv", scales, load)

    def get_matrices(self, layer: Any) -> tuple[ExpertMatrix, ExpertMatrix]:
        b13, b2 = get_biases(layer)
        rows, columns = self._block_size
        return (
            ExpertMatrix(layer.w13_weight, b13, layer.w13_weight_scale_inv, (rows, columns)),
            ExpertMatrix(layer.w2_weight, b2, layer.w2_weight_scale_inv, (rows, columns)),
        )


class _ScaleLoader:
    """Places the scale of one matrix of one expert. `cuts_w2`: scales of w2 lie along its input too. `may_repeat`: one number stands
    for all."""

    def __init__(self, layer: Any, cuts_w2: bool, may_repeat: bool) -> None:
        self._layer = layer
        self._cuts_w2 = cuts_w2
        self._may_repeat = may_repeat

    def __call__(
        self,
        param: torch.nn.Parameter,
        loaded: torch.Tensor,
        weight_name: str,
        shard_id: str,
        expert_id: int,
    ) -> None:
        layer = self._layer
        local = expert_id - layer.moe_ep_rank * layer.num_local_experts
        if not 0 <= local < layer.num_local_experts:
            return
        target, loaded = _rows_of(param.data[local], shard_id, layer.is_gated), loaded.float()
        if loaded.numel() == 1 and self._may_repeat:
            target.fill_(loaded.item())
        else:
            copy_into(target, self._cut(loaded, target, shard_id, weight_name), weight_name)
        mark_filled(param, f"{expert_id}.{shard_id}")

    def _cut(
        self, loaded: torch.Tensor, target: torch.Tensor, shard_id: str, name: str
    ) -> torch.Tensor:
        """This rank's part."""
        layer, dim = self._layer, 1 if shard_id == "w2" else 0
        if loaded.dim() == 1 and target.dim() == 2:
            loaded = loaded.unsqueeze(1)
        if layer.use_presharded_weights or (dim == 1 and not self._cuts_w2):
            return loaded
        size, num_ranks = target.shape[dim], layer.moe_tp_size
        return slice_for_rank(loaded, dim, size, layer.moe_tp_rank, num_ranks, name)


def _rows_of(target: torch.Tensor, shard_id: str, is_gated: bool) -> torch.Tensor:
    """What a shard fills of the scales of one expert."""
    if shard_id == "w2" or not is_gated:
        return target
    return target.chunk(2, dim=0)[0 if shard_id == "w1" else 1]


def _scales(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.float32)


def _register(layer: Any, name: str, data: torch.Tensor, weight_loader: Any = None) -> None:
    param = Parameter(data, requires_grad=False)
    if weight_loader is not None:
        set_weight_attrs(param, {"weight_loader": weight_loader})
    setattr(layer, name, param)
