"""The settings of a layer of experts, for the functions that compute it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class MoeRunnerConfig:
    """All optional; sizes that are None are taken from the tensors."""

    num_experts: int | None = None
    num_local_experts: int | None = None
    hidden_size: int | None = None
    intermediate_size_per_partition: int | None = None
    layer_id: int | None = None
    top_k: int | None = None
    num_fused_shared_experts: int | None = None
    params_dtype: torch.dtype | None = None
    activation: str = "silu"
    is_gated: bool = True
    apply_router_weight_on_input: bool = False
    inplace: bool = True  # a permission, which is not used
    no_combine: bool = False  # return [T, k, D] instead of the sum over k
    routed_scaling_factor: float | None = None
    gemm1_alpha: float | None = None  # with it, gate * sigmoid(alpha * gate) * (up + 1)
    gemm1_clamp_limit: float | None = None
