"""A layer of experts, cut over ranks.

Experts are dealt to expert-parallel ranks in equal runs; each expert's inner width is cut over the ranks of the expert tensor-parallel group.
The result of one rank is a partial sum: the caller adds the ranks up.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any

import torch
from torch.nn import Parameter

from sglang.srt.distributed import (
    get_moe_expert_parallel_rank,
    get_moe_expert_parallel_world_size,
    get_moe_tensor_parallel_rank,
    get_moe_tensor_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.moe.token_dispatcher import StandardDispatchOutput
from sglang.srt.layers.moe.topk import StandardTopKOutput
from sglang.srt.layers.moe.unquantized import UnquantizedFusedMoEMethod
from sglang.srt.layers.moe.utils import RoutingMethodType, get_moe_runner_backend
from sglang.srt.layers.parameter import expect_shards, mark_filled
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.layers.weight_placement import copy_into, slice_for_rank
from sglang.srt.utils.errors import ConfigError

__all__ = [
    "FusedMoE",
    "FusedMoeWeightScaleSupported",
    "UnquantizedFusedMoEMethod",
    "get_moe_runner_backend",
]

# (fused parameter, part of the checkpoint name, expert, shard id)
ExpertMapping = tuple[str, str, int, str]


class FusedMoeWeightScaleSupported(Enum):
    """Kinds of scale that quantized experts may have."""

    TENSOR = "tensor"
    CHANNEL = "channel"
    GROUP = "group"
    BLOCK = "block"


class FusedMoE(torch.nn.Module):
    """`num_experts` gated MLPs of which each token uses the ones that `topk_output` names.

    Args:
        num_experts: all experts, fused shared ones included.
        top_k: choices of a token, at most `num_experts`; None: known by the router alone, and then kernels are compiled when they are needed.
        reduce_results: sum over ranks here instead of in the caller.
        apply_router_weight_on_input: weight the expert's input instead of its output.
        no_combine: return the outputs of the choices [T, k, D] instead of their sum.
        routed_scaling_factor: multiplies the result.
        gemm1_alpha, gemm1_clamp_limit: the clamped `gate * sigmoid(alpha * gate) * (up + 1)` activation.
        use_weight_loader_fused: checkpoint tensors hold all experts.
        is_gated: False for experts with a single first matrix.
    """

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        layer_id: int,
        top_k: int | None = None,
        num_fused_shared_experts: int = 0,
        params_dtype: torch.dtype | None = None,
        reduce_results: bool = False,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
        activation: str = "silu",
        apply_router_weight_on_input: bool = False,
        use_presharded_weights: bool = False,
        inplace: bool = True,
        no_combine: bool = False,
        routed_scaling_factor: float | None = None,
        gemm1_alpha: float | None = None,
        gemm1_clamp_limit: float | None = None,
        use_weight_loader_fused: bool = False,
        with_bias: bool = False,
        routing_method_type: RoutingMethodType | None = None,
        is_gated: bool = True,
    ) -> None:
        super().__init__()
        if top_k is not None and not 0 < top_k <= num_experts:
            raise ConfigError(
                f"top_k={top_k} of the experts at {prefix!r} must be between 1 and their number, {num_experts}"
            )
        self.layer_id = layer_id
        self.top_k = top_k
        self.hidden_size = hidden_size
        self.num_experts = num_experts
        self.num_fused_shared_experts = num_fused_shared_experts
        self.reduce_results = reduce_results
        self.quant_config = quant_config
        self.prefix = prefix
        self.use_presharded_weights = use_presharded_weights
        self.is_gated = is_gated
        self.moe_ep_size = get_moe_expert_parallel_world_size()
        self.moe_ep_rank = get_moe_expert_parallel_rank()
        self.moe_tp_size = get_moe_tensor_parallel_world_size()
        self.moe_tp_rank = get_moe_tensor_parallel_rank()
        self.num_local_experts = self._cut(num_experts, self.moe_ep_size, "ep_size", "experts")
        self.intermediate_size_per_partition = self._cut(
            intermediate_size, self.moe_tp_size, "moe_tp_size", "intermediate size"
        )
        # Compatibility: scaling happens here, and there is no dispatcher between ranks.
        self.should_fuse_routed_scaling_factor_in_topk = False
        self.dispatcher = None
        self.moe_runner_config = MoeRunnerConfig(
            num_experts=num_experts,
            num_local_experts=self.num_local_experts,
            hidden_size=hidden_size,
            intermediate_size_per_partition=self.intermediate_size_per_partition,
            layer_id=layer_id,
            top_k=top_k,
            num_fused_shared_experts=num_fused_shared_experts,
            params_dtype=params_dtype or torch.get_default_dtype(),
            activation=activation,
            is_gated=is_gated,
            apply_router_weight_on_input=apply_router_weight_on_input,
            inplace=inplace,
            no_combine=no_combine,
            routed_scaling_factor=routed_scaling_factor,
            gemm1_alpha=gemm1_alpha,
            gemm1_clamp_limit=gemm1_clamp_limit,
        )
        self.quant_method = self._choose_method()
        self._create_parameters(
            self.weight_loader_fused if use_weight_loader_fused else self.weight_loader, with_bias
        )
        if not use_weight_loader_fused:
            self._expect_every_expert()
        self.quant_method.create_moe_runner(self, self.moe_runner_config)

    def forward(
        self,
        hidden_states: torch.Tensor,  # [T, D]
        topk_output: StandardTopKOutput,
    ) -> torch.Tensor:  # [T, D]
        out = self.run_moe_core(StandardDispatchOutput(hidden_states, topk_output)).hidden_states
        return tensor_model_parallel_all_reduce(out) if self.reduce_results else out

    def run_moe_core(self, dispatch_output: StandardDispatchOutput) -> Any:
        """The experts of this rank, without any sum over ranks."""
        return self.quant_method.apply(self, dispatch_output)

    def why_waits_for_host(self) -> str | None:
        """Why a forward needs the router's choices on the host, so that no graph can hold it; None when all stays on the device."""
        return self.quant_method.why_waits_for_host(self)

    def to_local_ids(self, topk_ids: torch.Tensor) -> torch.Tensor:
        """Ids of all experts -> indices of this rank's, outside of its range for the others'."""
        return topk_ids - self.moe_ep_rank * self.num_local_experts

    def weight_loader(
        self,
        param: Parameter,
        loaded_weight: torch.Tensor,
        weight_name: str,
        shard_id: str,
        expert_id: int,
    ) -> None:
        """Place one matrix or bias of one expert: "w1" gate, "w3" up, "w2" down.

        `expert_id` counts over all ranks; experts of other ranks are passed over. Raises ValueError when the shape does not fit.
        """
        if shard_id not in ("w1", "w2", "w3"):
            raise ValueError(f"shard_id={shard_id!r} is not one of w1, w2, w3 ({weight_name})")
        local = expert_id - self.moe_ep_rank * self.num_local_experts
        if not 0 <= local < self.num_local_experts:
            return
        self._copy(self._part(param.data[local], shard_id), loaded_weight, shard_id, weight_name)
        mark_filled(param, f"{expert_id}.{shard_id}")

    def weight_loader_fused(
        self, param: Parameter, loaded_weight: torch.Tensor, weight_name: str, shard_id: str
    ) -> None:
        """Place a tensor of all experts: "w13" (gate rows, then up rows) or "w2". A transposed one is turned around.

        With `gemm1_alpha`, gate and up rows alternate, as checkpoints with that activation have them.
        """
        if shard_id not in ("w13", "w2"):
            raise ValueError(f"shard_id={shard_id!r} is not one of w13, w2 ({weight_name})")
        first = self.moe_ep_rank * self.num_local_experts
        loaded = loaded_weight.narrow(0, first, self.num_local_experts)
        if loaded.dim() == 3 and loaded.shape[1:] != self._full_shape(shard_id):
            loaded = loaded.transpose(1, 2)
        parts = [("w2", loaded)]
        if shard_id == "w13":
            if self.moe_runner_config.gemm1_alpha is not None:
                loaded = torch.cat([loaded[:, 0::2], loaded[:, 1::2]], dim=1)
            names = ("w1", "w3") if self.is_gated else ("w1",)
            parts = list(zip(names, loaded.chunk(len(names), dim=1), strict=True))
        for local in range(self.num_local_experts):
            for name, part in parts:
                self._copy(self._part(param.data[local], name), part[local], name, weight_name)
        mark_filled(param)

    @classmethod
    def make_expert_params_mapping(
        cls,
        ckpt_gate_proj_name: str,
        ckpt_down_proj_name: str,
        ckpt_up_proj_name: str,
        num_experts: int,
    ) -> list[ExpertMapping]:
        """`(parameter, part of the checkpoint name, expert, shard id)`: replace the second by the first."""
        names = {"w1": ckpt_gate_proj_name, "w2": ckpt_down_proj_name, "w3": ckpt_up_proj_name}
        return [
            (
                "experts.w2_" if shard_id == "w2" else "experts.w13_",
                f"experts.{expert}.{name}.",
                expert,
                shard_id,
            )
            for expert in range(num_experts)
            for shard_id, name in names.items()
        ]

    @classmethod
    def make_expert_params_mapping_fused(
        cls,
        ckpt_gate_up_proj_name: str,
        ckpt_down_proj_name: str,
        ckpt_gate_up_proj_bias_name: str,
        ckpt_down_proj_bias_name: str,
    ) -> list[tuple[str, str, str]]:
        """`(parameter, checkpoint name, shard id)` where one tensor holds all experts."""
        return [
            ("experts.w13_weight", f"experts.{ckpt_gate_up_proj_name}", "w13"),
            ("experts.w13_weight_bias", f"experts.{ckpt_gate_up_proj_bias_name}", "w13"),
            ("experts.w2_weight", f"experts.{ckpt_down_proj_name}", "w2"),
            ("experts.w2_weight_bias", f"experts.{ckpt_down_proj_bias_name}", "w2"),
        ]

    @classmethod
    def make_expert_input_scale_params_mapping(cls, num_experts: int) -> list[ExpertMapping]:
        """The same for input scales of quantized checkpoints."""
        return [
            (
                "experts.w2_" if shard_id == "w2" else "experts.w13_",
                f"experts.{e}.{shard_id}.",
                e,
                shard_id,
            )
            for e in range(num_experts)
            for shard_id in ("w1", "w2", "w3")
        ]

    def _cut(self, size: int, num_ranks: int, name: str, what: str) -> int:
        """A rank's part. Raises ConfigError naming the layer and both numbers when there is a remainder."""
        if size % num_ranks != 0:
            raise ConfigError(
                f"{name}={num_ranks} does not divide the {what} {size} of the experts at {self.prefix!r}; "
                "choose a parallel size that does"
            )
        return size // num_ranks

    def _choose_method(self) -> Any:
        if self.quant_config is None:
            return UnquantizedFusedMoEMethod()
        method = self.quant_config.get_quant_method(self, self.prefix)
        if method is None:
            raise ValueError(
                f"quantization {self.quant_config.get_name()!r} has no method for the experts at {self.prefix!r}"
            )
        return method

    def _create_parameters(self, weight_loader: Any, with_bias: bool) -> None:
        self.quant_method.create_weights(
            layer=self,
            num_experts=self.num_local_experts,
            hidden_size=self.hidden_size,
            intermediate_size_per_partition=self.intermediate_size_per_partition,
            params_dtype=self.moe_runner_config.params_dtype,
            weight_loader=weight_loader,
            with_bias=with_bias,
            is_gated=self.is_gated,
        )

    def _expect_every_expert(self) -> None:
        first = self.moe_ep_rank * self.num_local_experts
        experts = range(first, first + self.num_local_experts)
        for name, param in self.named_parameters(recurse=False):
            shards: Iterable[str] = ("w2",)
            if name.startswith("w13"):
                shards = ("w1", "w3") if self.is_gated else ("w1",)
            expect_shards([param], [f"{expert}.{shard}" for expert in experts for shard in shards])

    def _part(self, target: torch.Tensor, shard_id: str) -> torch.Tensor:
        """The rows of one expert's parameter that a shard fills."""
        if shard_id == "w2" or not self.is_gated:
            return target
        gate, up = target.chunk(2, dim=0)
        return gate if shard_id == "w1" else up

    def _copy(
        self, target: torch.Tensor, loaded: torch.Tensor, shard_id: str, weight_name: str
    ) -> None:
        """Cut the loaded tensor for this rank and copy. The bias of w2 is whole on every rank."""
        dim = 1 if shard_id == "w2" else 0
        if not self.use_presharded_weights and loaded.dim() > dim:
            loaded = slice_for_rank(
                loaded, dim, target.shape[dim], self.moe_tp_rank, self.moe_tp_size, weight_name
            )
        copy_into(target, loaded, weight_name)

    def _full_shape(self, shard_id: str) -> tuple[int, int]:
        """Rows and columns of one expert's matrix in a fused checkpoint tensor."""
        cut = 1 if self.use_presharded_weights else self.moe_tp_size
        inner = self.intermediate_size_per_partition * cut
        if shard_id == "w2":
            return self.hidden_size, inner
        return (2 * inner if self.is_gated else inner), self.hidden_size

    def extra_repr(self) -> str:
        return f"experts={self.num_local_experts}/{self.num_experts}, width={self.hidden_size}"
