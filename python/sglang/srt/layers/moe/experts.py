"""The arithmetic of a layer of experts: on a GPU in kernels (`fused_experts`), else in plain torch, the reference for every faster way.

    y[t] = sum over k of  weight[t, k] * w2[e] act(w13[e] x[t]),   e = id[t, k]

Legend: T tokens, D model width, I width inside an expert (of this rank), E experts of this rank, k choices per token. Plain torch reads the
ids on the host.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from sglang.srt.layers.moe.expert_matrix import ExpertMatrix
from sglang.srt.layers.moe.fused_experts import run_fused, why_not_fused
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig


def run_experts(
    x: torch.Tensor,  # [T, D]
    first: ExpertMatrix,  # [E, 2I, D] gate rows, then up rows; [E, I, D] when not gated
    second: ExpertMatrix,  # [E, D, I]
    topk_weights: torch.Tensor,  # [T, k] float32
    topk_ids: torch.Tensor,  # [T, k] indices into E; anything outside is left out
    config: MoeRunnerConfig,
) -> torch.Tensor:
    """Weighted sum of the chosen experts, [T, D] in the dtype of `x`; [T, k, D] unsummed with `no_combine`.

    A choice that no expert here serves contributes zero. Sums in float32.
    """
    is_fused = why_not_fused(first, second, config, x.dtype) is None
    run = run_fused if is_fused else run_plain
    return run(x, first, second, topk_weights, topk_ids, config)


def run_plain(
    x: torch.Tensor,
    first: ExpertMatrix,
    second: ExpertMatrix,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    config: MoeRunnerConfig,
) -> torch.Tensor:
    """`run_experts` in plain torch."""
    num_tokens, top_k = topk_ids.shape
    parts = torch.zeros(num_tokens * top_k, x.shape[1], dtype=torch.float32, device=x.device)
    flat_ids = topk_ids.flatten()
    flat_weights = topk_weights.flatten().float()
    for expert in _used_experts(flat_ids, first.weight.shape[0]):
        choices = (flat_ids == expert).nonzero().squeeze(1)  # [n] indices into T * k
        rows = x[choices // top_k]
        if config.apply_router_weight_on_input:
            rows = (rows * flat_weights[choices, None]).to(x.dtype)
        hidden = _activate(first.product(rows, expert), config)
        out = second.product(hidden, expert).float()
        if not config.apply_router_weight_on_input:
            out = out * flat_weights[choices, None]
        parts[choices] = out
    parts = parts.view(num_tokens, top_k, x.shape[1])
    if config.routed_scaling_factor is not None:
        parts = parts * config.routed_scaling_factor
    return (parts if config.no_combine else parts.sum(dim=1)).to(x.dtype)


def _used_experts(flat_ids: torch.Tensor, num_experts: int) -> list[int]:
    """The local experts that some token chose. Waits for the device."""
    return [expert for expert in flat_ids.unique().tolist() if 0 <= expert < num_experts]


def _activate(hidden: torch.Tensor, config: MoeRunnerConfig) -> torch.Tensor:
    """[n, 2I] -> [n, I] for gated experts, else elementwise. Raises ValueError for an unknown activation."""
    if not config.is_gated:
        return _choose_activation(config.activation)(hidden)
    gate, up = hidden.chunk(2, dim=-1)
    limit = config.gemm1_clamp_limit
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    if config.gemm1_alpha is not None:
        return gate * torch.sigmoid(config.gemm1_alpha * gate) * (up + 1)
    return _choose_activation(config.activation)(gate) * up


def _choose_activation(name: str):  # noqa: ANN202  (a function on tensors)
    functions = {
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
        "relu": F.relu,
        "relu2": _relu2,
    }
    if name not in functions:
        raise ValueError(
            f"activation={name!r} of experts is not supported; allowed: {', '.join(functions)}"
        )
    return functions[name]


def _relu2(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x).square()
