"""Routing: which experts a token goes to, and with what weight.

Legend: T tokens, E experts, k choices.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Any, NamedTuple

import torch

from sglang.srt.layers.triton_ops import MAX_ROUTED_EXPERTS, has_triton
from sglang.srt.layers.utils import MultiPlatformOp
from sglang.srt.utils.errors import ConfigError


class TopKOutputFormat(Enum):
    """What the experts get; here always STANDARD."""

    STANDARD = auto()
    TRITON_KERNEL = auto()
    BYPASSED = auto()

    def is_standard(self) -> bool:
        return self is TopKOutputFormat.STANDARD

    def is_triton_kernels(self) -> bool:
        return self is TopKOutputFormat.TRITON_KERNEL

    def is_bypassed(self) -> bool:
        return self is TopKOutputFormat.BYPASSED


class StandardTopKOutput(NamedTuple):
    """The choices as tensors. Id -1 stands for no expert."""

    topk_weights: torch.Tensor  # [T, k] float32
    topk_ids: torch.Tensor  # [T, k] int32
    router_logits: torch.Tensor  # [T, E]

    @property
    def format(self) -> TopKOutputFormat:
        return TopKOutputFormat.STANDARD


TopKOutput = StandardTopKOutput


class TopK(MultiPlatformOp):
    """Chooses `top_k` experts of the router's logits.

    Scores are `scoring_func` (softmax or sigmoid) of the logits, and sigmoid for groups with a bias. `correction_bias` takes part in the
    choice, not in the weights. With `use_grouped_topk` only experts of the `topk_group` best of `num_expert_group` groups are eligible; a
    group counts by its best score, or with a bias by the sum of its two best. `renormalize` divides the weights by their sum. The last
    `num_fused_shared_experts` of `top_k` are the shared experts, ids E and up, which count `fused_shared_experts_scaling_factor` (1 when
    None) in the block's sum. `apply_routed_scaling_factor_on_output` scales the weights of the grouped forms.
    """

    def __init__(
        self,
        top_k: int,
        *,
        layer_id: int | None = None,
        use_grouped_topk: bool = False,
        topk_group: int | None = None,
        num_expert_group: int | None = None,
        renormalize: bool = True,
        num_fused_shared_experts: int = 0,
        custom_routing_function: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None,
        scoring_func: str = "softmax",
        correction_bias: torch.Tensor | None = None,
        quant_config: Any = None,
        routed_scaling_factor: float | None = None,
        apply_routed_scaling_factor_on_output: bool = False,
        output_format: TopKOutputFormat | None = None,
        fused_shared_experts_scaling_factor: float | None = None,
    ) -> None:
        super().__init__()
        if scoring_func not in ("softmax", "sigmoid"):
            raise ConfigError(
                f"scoring_func={scoring_func!r} is not supported; allowed: softmax, sigmoid"
            )
        if use_grouped_topk and (topk_group is None or num_expert_group is None):
            raise ConfigError("use_grouped_topk needs topk_group and num_expert_group")
        if output_format is not None and not output_format.is_standard():
            raise ConfigError(f"output_format={output_format} is not supported; leave it out")
        self.top_k = top_k
        self.layer_id = layer_id
        self.use_grouped_topk = use_grouped_topk
        self.topk_group = topk_group
        self.num_expert_group = num_expert_group
        self.renormalize = renormalize
        self.num_fused_shared_experts = num_fused_shared_experts
        self.custom_routing_function = custom_routing_function
        self.scoring_func = scoring_func
        # The router's own parameter: kept out of this module's state.
        self._correction_bias = (correction_bias,)
        self.routed_scaling_factor = routed_scaling_factor
        self.apply_routed_scaling_factor_on_output = apply_routed_scaling_factor_on_output
        factor = fused_shared_experts_scaling_factor
        self.fused_shared_experts_scaling_factor = 1.0 if factor is None else factor

    @property
    def correction_bias(self) -> torch.Tensor | None:
        return self._correction_bias[0]

    def forward_native(
        self,
        hidden_states: torch.Tensor,  # [T, D]
        router_logits: torch.Tensor,  # [T, E]
        *,
        num_token_non_padded: torch.Tensor | None = None,
        expert_location_dispatch_info: Any = None,
    ) -> StandardTopKOutput:
        """`num_token_non_padded` (0-d): rows from there on are padding and go nowhere."""
        return self._choose(
            self._route, hidden_states, router_logits, num_token_non_padded, expert_location_dispatch_info
        )  # fmt: skip

    def forward_cuda(
        self,
        hidden_states: torch.Tensor,  # [T, D]
        router_logits: torch.Tensor,  # [T, E]
        *,
        num_token_non_padded: torch.Tensor | None = None,
        expert_location_dispatch_info: Any = None,
    ) -> StandardTopKOutput:
        """The same with one kernel for scores, choice and weights, where there are no groups and no shared experts among them."""
        route = self._route_fused if self._suits_kernel(router_logits) else self._route
        return self._choose(
            route, hidden_states, router_logits, num_token_non_padded, expert_location_dispatch_info
        )  # fmt: skip

    def empty_topk_output(self, device: torch.device | str) -> StandardTopKOutput:
        """The output for no tokens."""
        num_choices = self.top_k
        return StandardTopKOutput(
            torch.empty(0, num_choices, dtype=torch.float32, device=device),
            torch.empty(0, num_choices, dtype=torch.int32, device=device),
            torch.empty(0, num_choices, dtype=torch.float32, device=device),
        )

    def _choose(
        self,
        route: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
        hidden_states: torch.Tensor,
        router_logits: torch.Tensor,
        num_token_non_padded: torch.Tensor | None,
        expert_location_dispatch_info: Any,
    ) -> StandardTopKOutput:
        if expert_location_dispatch_info is not None:
            raise ConfigError("experts in other places than their ids say are not supported")
        if self.custom_routing_function is not None:
            weights, ids = self.custom_routing_function(
                hidden_states=hidden_states,
                gating_output=router_logits,
                topk=self.top_k,
                renormalize=self.renormalize,
            )
        else:
            weights, ids = route(router_logits)
        ids = ids.to(torch.int32)
        if num_token_non_padded is not None:
            rows = torch.arange(ids.shape[0], device=ids.device)
            ids = ids.masked_fill((rows >= num_token_non_padded)[:, None], -1)
        return StandardTopKOutput(weights.float(), ids, router_logits)

    def _suits_kernel(self, router_logits: torch.Tensor) -> bool:
        return (
            router_logits.is_cuda
            and not self.use_grouped_topk
            and not self.num_fused_shared_experts
            and self.top_k <= router_logits.shape[1] <= MAX_ROUTED_EXPERTS
            and has_triton()
        )

    def _route_fused(self, router_logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from sglang.srt.layers.triton_ops.moe.route import choose_experts

        return choose_experts(
            router_logits,
            self.top_k,
            is_sigmoid=self.scoring_func == "sigmoid",
            renormalize=self.renormalize,
            correction_bias=self.correction_bias,
        )

    def _route(self, router_logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = router_logits.float()
        # Groups by a bias exist with sigmoid scores only; callers leave `scoring_func` at its default.
        is_grouped_by_bias = self.use_grouped_topk and self.correction_bias is not None
        is_sigmoid = is_grouped_by_bias or self.scoring_func == "sigmoid"
        scores = logits.sigmoid() if is_sigmoid else logits.softmax(dim=-1)
        eligible = scores if self.correction_bias is None else scores + self.correction_bias.float()
        if self.use_grouped_topk:
            eligible = self._keep_best_groups(eligible)
        num_routed = self.top_k - self.num_fused_shared_experts
        ids = eligible.topk(num_routed, dim=-1).indices
        weights = scores.gather(1, ids)
        total = weights.sum(dim=-1, keepdim=True)
        if self.num_fused_shared_experts:
            weights, ids = self._append_shared(weights, ids, total, scores.shape[1])
        if self.renormalize:
            weights = weights / total
        if self.use_grouped_topk and self.apply_routed_scaling_factor_on_output:
            weights = weights * _required(self.routed_scaling_factor, "routed_scaling_factor")
        return weights, ids

    def _keep_best_groups(self, eligible: torch.Tensor) -> torch.Tensor:
        """Scores [T, E] with -inf in all but the best groups."""
        num_groups = _required(self.num_expert_group, "num_expert_group")
        grouped = eligible.unflatten(-1, (num_groups, -1))  # [T, G, E/G]
        if self.correction_bias is None:
            worth = grouped.max(dim=-1).values
        else:
            worth = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(dim=-1)
        best = worth.topk(_required(self.topk_group, "topk_group"), dim=-1).indices
        is_kept = torch.zeros_like(worth, dtype=torch.bool).scatter_(1, best, True)
        return grouped.masked_fill(~is_kept[..., None], -torch.inf).flatten(1)

    def _append_shared(
        self, weights: torch.Tensor, ids: torch.Tensor, total: torch.Tensor, num_experts: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the shared experts. Their weight undoes the scaling that the routed ones get afterwards."""
        count = self.num_fused_shared_experts
        routed_scale = _required(self.routed_scaling_factor, "routed_scaling_factor")
        scale = routed_scale / self.fused_shared_experts_scaling_factor
        shared = torch.arange(num_experts, num_experts + count, device=ids.device)
        return (
            torch.cat([weights, (total / scale).expand(-1, count)], dim=1),
            torch.cat([ids, shared.expand(ids.shape[0], -1)], dim=1),
        )


def _required(value: Any, name: str) -> Any:
    if value is None:
        raise ConfigError(f"this kind of routing needs {name}")
    return value
