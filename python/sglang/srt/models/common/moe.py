"""A block of routed experts in the place of an MLP.

    s = score(Wg x);  ids = top_k(s + b);  w = s[ids], over their sum on request, times a factor
    out = sum_k w_k expert_{ids_k}(x) + shared(x)?

Legend: T tokens, D model width, E experts, k choices of each token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn import Parameter

from sglang.srt.distributed import tensor_model_parallel_all_reduce
from sglang.srt.layers.linear import ReplicatedLinear
from sglang.srt.layers.moe.ep_moe.layer import get_moe_impl_class
from sglang.srt.layers.moe.topk import TopK
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.utils import add_prefix
from sglang.srt.utils.errors import ConfigError


class SparseMoE(nn.Module):
    """Router and experts, each a gated MLP (`activation`) of inner width `intermediate_size`.

    `renormalize`: the weights of a token's choices sum to one. `scoring_func`: "softmax" or "sigmoid" of the router's
    logits. `num_groups`, `top_groups`: only experts of the best groups are eligible. `has_correction_bias`: the router
    has `e_score_correction_bias` [E] float32, which takes part in the choice only. `routed_scaling_factor` scales the
    experts' sum. `shared_intermediate_size`: inner width of `shared_experts`, an MLP that every token uses; None for
    none. `float32_router`: the router multiplies in float32 whatever the model's dtype. `weighs_inputs`: the weights
    multiply what the experts read instead of what they give.

    A block with another part that every token uses overrides `partial_sum`. Raises ConfigError when a token has more
    choices than there are eligible experts, or groups are unequal.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        top_k: int,
        layer_id: int,
        *,
        renormalize: bool,
        scoring_func: str = "softmax",
        num_groups: int = 1,
        top_groups: int = 1,
        has_correction_bias: bool = False,
        routed_scaling_factor: float = 1.0,
        shared_intermediate_size: int | None = None,
        float32_router: bool = False,
        activation: str = "silu",
        weighs_inputs: bool = False,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        _check_choices(top_k, num_experts, num_groups, top_groups)
        self.gate = Router(
            hidden_size,
            num_experts,
            has_correction_bias=has_correction_bias,
            in_float32=float32_router,
            prefix=add_prefix("gate", prefix),
        )
        self.topk = TopK(
            top_k,
            layer_id=layer_id,
            renormalize=renormalize,
            scoring_func=scoring_func,
            use_grouped_topk=num_groups > 1,
            num_expert_group=num_groups,
            topk_group=top_groups,
            correction_bias=self.gate.e_score_correction_bias,
        )
        self.experts = get_moe_impl_class(quant_config)(
            num_experts=num_experts,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            layer_id=layer_id,
            top_k=top_k,
            activation=activation,
            routed_scaling_factor=None if routed_scaling_factor == 1.0 else routed_scaling_factor,
            apply_router_weight_on_input=weighs_inputs,
            quant_config=quant_config,
            prefix=add_prefix("experts", prefix),
        )
        self.shared_experts: GatedMLP | None = None
        if shared_intermediate_size is not None:
            self.shared_experts = GatedMLP(
                hidden_size,
                shared_intermediate_size,
                "silu",
                quant_config,
                add_prefix("shared_experts", prefix),
                reduce_results=False,
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [T, D] -> [T, D]
        return tensor_model_parallel_all_reduce(self.partial_sum(x))

    def partial_sum(self, x: torch.Tensor) -> torch.Tensor:
        """This rank's part of the output, `[T, D]`."""
        router_logits, _ = self.gate(x)  # [T, E]
        out = self.experts(x, self.topk(x, router_logits))
        return out if self.shared_experts is None else out + self.shared_experts(x)


class Router(ReplicatedLinear):
    """Logits of the experts, the same on every rank. Never quantized: a small error in a score is another expert."""

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        *,
        has_correction_bias: bool = False,
        in_float32: bool = False,
        prefix: str = "",
    ) -> None:
        super().__init__(hidden_size, num_experts, bias=False, prefix=prefix)
        self.in_float32 = in_float32
        # float32 in every model: its values are close to one another next to bfloat16's steps.
        self.e_score_correction_bias = (
            Parameter(torch.empty(num_experts, dtype=torch.float32), requires_grad=False)
            if has_correction_bias
            else None
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:  # [T, D] -> [T, E]
        if self.in_float32:
            return F.linear(x.float(), self.weight.float()), None
        logits, _ = super().forward(x)
        return logits, None


def _check_choices(top_k: int, num_experts: int, num_groups: int, top_groups: int) -> None:
    if num_groups < 1 or num_experts % num_groups or not 1 <= top_groups <= num_groups:
        raise ConfigError(
            f"n_group={num_groups} must divide the number of experts, {num_experts}, and "
            f"topk_group={top_groups} must be between 1 and n_group"
        )
    eligible = num_experts // num_groups * top_groups
    if not 0 < top_k <= eligible:
        of_groups = f" in {top_groups} of {num_groups} groups" if num_groups > 1 else ""
        raise ConfigError(
            f"num_experts_per_tok={top_k} must be between 1 and the number of experts{of_groups}, {eligible}"
        )
