"""Expert weights as they are."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Parameter

from sglang.srt.layers.moe.experts import run_experts
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput, StandardDispatchOutput
from sglang.srt.layers.quantization.base_config import FusedMoEMethodBase
from sglang.srt.utils import set_weight_attrs


class UnquantizedFusedMoEMethod(FusedMoEMethodBase):
    """`w13_weight [E, 2I, D]` (gate, then up; I rows when not gated) and `w2_weight [E, D, I]`, with biases on request.

    The two arguments choose other layouts elsewhere and must be off.
    """

    def __init__(
        self, use_triton_kernels: bool = False, use_flashinfer_trtllm_moe: bool = False
    ) -> None:
        if use_triton_kernels or use_flashinfer_trtllm_moe:
            raise ValueError("use_triton_kernels and use_flashinfer_trtllm_moe are not supported")
        self._config = MoeRunnerConfig()

    def create_weights(
        self,
        layer: torch.nn.Module,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """`num_experts` are those of this rank. `extra_weight_attrs`: `weight_loader`, `with_bias`, `is_gated`."""
        with_bias = extra_weight_attrs.pop("with_bias", False)
        rows = intermediate_size_per_partition * (
            2 if extra_weight_attrs.pop("is_gated", True) else 1
        )
        shapes: dict[str, tuple[int, ...]] = {
            "w13_weight": (num_experts, rows, hidden_size),
            "w2_weight": (num_experts, hidden_size, intermediate_size_per_partition),
        }
        if with_bias:
            shapes["w13_weight_bias"] = (num_experts, rows)
            shapes["w2_weight_bias"] = (num_experts, hidden_size)
        for name, shape in shapes.items():
            param = Parameter(torch.empty(*shape, dtype=params_dtype), requires_grad=False)
            set_weight_attrs(param, extra_weight_attrs)
            layer.register_parameter(name, param)

    def create_moe_runner(self, layer: torch.nn.Module, moe_runner_config: MoeRunnerConfig) -> None:
        self._config = moe_runner_config

    def apply(self, layer: Any, dispatch_output: StandardDispatchOutput) -> StandardCombineInput:
        routing = dispatch_output.topk_output
        biases = dict(layer.named_parameters(recurse=False))
        b2 = biases.get("w2_weight_bias")
        out = run_experts(
            dispatch_output.hidden_states,
            layer.w13_weight,
            layer.w2_weight,
            routing.topk_weights,
            layer.to_local_ids(routing.topk_ids),
            self._config,
            biases.get("w13_weight_bias"),
            # Ranks that share an expert are summed: one of them adds the bias.
            b2 if layer.moe_tp_rank == 0 else None,
        )
        return StandardCombineInput(out)
