"""The layer of experts as a function."""

from __future__ import annotations

import torch

from sglang.srt.layers.moe.expert_matrix import ExpertMatrix
from sglang.srt.layers.moe.experts import run_experts
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.moe.topk import StandardTopKOutput


def fused_moe(
    hidden_states: torch.Tensor,  # [T, D]
    w1: torch.Tensor,  # [E, 2I, D]
    w2: torch.Tensor,  # [E, D, I]
    topk_output: StandardTopKOutput,
    moe_runner_config: MoeRunnerConfig | None = None,
    b1: torch.Tensor | None = None,  # [E, 2I]
    b2: torch.Tensor | None = None,  # [E, D]
    **quantization: object,
) -> torch.Tensor:
    """Weighted sum of the chosen experts, [T, D]. Raises ValueError when a quantization flag or scale is given."""
    given = [name for name, value in quantization.items() if value not in (None, False)]
    if given:
        raise ValueError(f"fused_moe computes unquantized experts only; leave out {given}")
    return run_experts(
        hidden_states,
        ExpertMatrix(w1, b1),
        ExpertMatrix(w2, b2),
        topk_output.topk_weights,
        topk_output.topk_ids,
        moe_runner_config or MoeRunnerConfig(),
    )


# The package's name `fused_moe` is this function and hides the module; files that take it for the module call it so.
fused_moe.fused_moe = fused_moe  # type: ignore[attr-defined]
