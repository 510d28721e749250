"""Expert weights as they are."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Parameter

from sglang.srt.layers.moe.expert_matrix import ExpertMatrix
from sglang.srt.layers.moe.experts import run_experts
from sglang.srt.layers.moe.fused_experts import why_not_fused
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput, StandardDispatchOutput
from sglang.srt.layers.quantization.base_config import FusedMoEMethodBase
from sglang.srt.utils import set_weight_attrs


class ExpertsMethod(FusedMoEMethodBase):
    """A method that says what the two matrices of a layer are; the rest is the same for all of them."""

    def __init__(self) -> None:
        self._config = MoeRunnerConfig()

    def create_moe_runner(self, layer: torch.nn.Module, moe_runner_config: MoeRunnerConfig) -> None:
        self._config = moe_runner_config

    def get_matrices(self, layer: Any) -> tuple[ExpertMatrix, ExpertMatrix]:
        """w13 and w2 of this rank's experts."""
        raise NotImplementedError(f"{type(self).__name__} must define get_matrices")

    def apply(self, layer: Any, dispatch_output: StandardDispatchOutput) -> StandardCombineInput:
        routing = dispatch_output.topk_output
        out = run_experts(
            dispatch_output.hidden_states,
            *self.get_matrices(layer),
            routing.topk_weights,
            layer.to_local_ids(routing.topk_ids),
            self._config,
        )
        return StandardCombineInput(out)

    def why_waits_for_host(self, layer: Any) -> str | None:
        dtype = self._config.params_dtype or torch.get_default_dtype()
        return why_not_fused(*self.get_matrices(layer), self._config, dtype)


class UnquantizedFusedMoEMethod(ExpertsMethod):
    """`w13_weight [E, 2I, D]` (gate, then up; I rows when not gated) and `w2_weight [E, D, I]`, with biases on request.

    The two arguments choose other layouts elsewhere and must be off.
    """

    def __init__(
        self, use_triton_kernels: bool = False, use_flashinfer_trtllm_moe: bool = False
    ) -> None:
        if use_triton_kernels or use_flashinfer_trtllm_moe:
            raise ValueError("use_triton_kernels and use_flashinfer_trtllm_moe are not supported")
        super().__init__()

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

    def get_matrices(self, layer: Any) -> tuple[ExpertMatrix, ExpertMatrix]:
        b13, b2 = get_biases(layer)
        return ExpertMatrix(layer.w13_weight, b13), ExpertMatrix(layer.w2_weight, b2)


def get_biases(layer: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Of w13 and w2 on this rank."""
    params = dict(layer.named_parameters(recurse=False))
    # Ranks that share an expert are summed: one of them adds the bias.
    b2 = params.get("w2_weight_bias") if layer.moe_tp_rank == 0 else None
    return params.get("w13_weight_bias"), b2
