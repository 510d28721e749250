"""A layer of experts on a GPU without asking the host anything: who chose whom stays on the device, so that graphs can hold the layer.

    few tokens    first product of each choice, second product with the sum                    2 launches
    more          sort choices into blocks by expert, first product, second product, sum       4 launches

The first product ends with the activation, the second of few tokens with the weighted sum. Rounds where `experts.run_experts` does.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from sglang.srt.layers.moe.expert_matrix import FUSED_ACTIVATIONS, ExpertMatrix, Gate
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.moe.tiles import Shape, Tiles, choose_tiles
from sglang.srt.layers.quantization.fp8_math import round_activations, round_with
from sglang.srt.layers.triton_ops import has_triton

if TYPE_CHECKING:
    from sglang.srt.layers.triton_ops.moe.sort import Blocks
    from sglang.srt.layers.triton_ops.moe.total import Share

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Of compute capability: where bfloat16, and where codes of eight bits can be multiplied.
_FIRST_BF16, _FIRST_FP8 = (8, 0), (8, 9)


def why_not_fused(
    first: ExpertMatrix, second: ExpertMatrix, config: MoeRunnerConfig, dtype: torch.dtype
) -> str | None:
    """What keeps activations of `dtype` from `run_fused`; None when nothing does."""
    device = first.weight.device
    if not _is_gpu(device):
        return f"they are on {device.type!r}, not on a GPU"
    if not has_triton():
        return "the package triton is not installed"
    if config.activation not in FUSED_ACTIVATIONS:
        return f"no kernel has the activation {config.activation!r}"
    if dtype not in _DTYPES:
        return f"no kernel multiplies activations of {dtype}"
    reasons = (_why_not_matrix(matrix, dtype) for matrix in (first, second))
    reason = next((reason for reason in reasons if reason is not None), None)
    return reason or _why_not_device(device, first.kind, dtype)


def run_fused(
    x: torch.Tensor,  # [T, D]
    first: ExpertMatrix,  # [E, 2I, D] gate rows, then up rows; [E, I, D] when not gated
    second: ExpertMatrix,  # [E, D, I]
    topk_weights: torch.Tensor,  # [T, k] float32
    topk_ids: torch.Tensor,  # [T, k] indices into E; anything outside is left out
    config: MoeRunnerConfig,
    tiles: Tiles | None = None,  # instead of what the shape suggests
) -> torch.Tensor:
    """Weighted sum of the chosen experts, [T, D] in the dtype of `x`; [T, k, D] unsummed with `no_combine`."""
    from sglang.srt.layers.triton_ops.moe.total import Share

    ids = topk_ids.to(torch.int32).contiguous()
    if ids.numel() == 0:
        shape = (*ids.shape, x.shape[1]) if config.no_combine else x.shape
        return x.new_zeros(shape)
    weights = topk_weights.float().contiguous()
    factor = 1.0 if config.routed_scaling_factor is None else config.routed_scaling_factor
    share = Share(weights, factor)
    rows = x if x.stride(-1) == 1 else x.contiguous()
    if config.apply_router_weight_on_input:
        # One row for each choice.
        rows = (x[:, None] * weights[..., None]).to(x.dtype).flatten(0, 1)
        share = Share(None, factor)
    tiles = tiles or choose_tiles(
        shape_of(first, second, config, ids.shape[0], ids.shape[1], x.dtype)
    )
    run = _run_singly if tiles.is_single else _run_grouped
    return run(rows, first, second, ids, share, config, tiles, x.dtype)


def shape_of(
    first: ExpertMatrix,
    second: ExpertMatrix,
    config: MoeRunnerConfig,
    num_tokens: int,
    top_k: int,
    dtype: torch.dtype,
) -> Shape:
    """What tiles are chosen by, for activations of `dtype`."""
    num_local, hidden, inner = second.weight.shape
    return Shape(
        num_tokens=num_tokens,
        num_choices=num_tokens * top_k,
        num_experts=config.num_experts or num_local,
        num_local=num_local,
        hidden=hidden,
        inner=inner,
        is_gated=config.is_gated,
        row_bytes=1 if first.kind == "channel" else dtype.itemsize,
        weight_bytes=first.weight.element_size(),
        may_be_single=not config.no_combine,
        shared_memory=_shared_memory(first.weight.device),
    )


def _run_singly(
    rows: torch.Tensor,
    first: ExpertMatrix,
    second: ExpertMatrix,
    ids: torch.Tensor,
    share: Share,
    config: MoeRunnerConfig,
    tiles: Tiles,
    dtype: torch.dtype,
) -> torch.Tensor:
    from sglang.srt.layers.triton_ops.moe import single

    hidden = single.single_first(
        *_round(rows, first, ids), first, Gate.of(config), ids, dtype, tiles.first
    )
    return single.single_second(
        *_round(hidden, second, ids), second, ids, share, dtype, tiles.second
    )


def _run_grouped(
    rows: torch.Tensor,
    first: ExpertMatrix,
    second: ExpertMatrix,
    ids: torch.Tensor,
    share: Share,
    config: MoeRunnerConfig,
    tiles: Tiles,
    dtype: torch.dtype,
) -> torch.Tensor:
    from sglang.srt.layers.triton_ops.moe.sort import sort_by_expert
    from sglang.srt.layers.triton_ops.moe.total import add_up

    num_experts = first.weight.shape[0]
    blocks = sort_by_expert(ids, num_experts, tiles.block_m)
    parts = multiply_blocks(rows, first, second, ids, blocks, config, tiles, dtype)
    return add_up(parts, ids, num_experts, share, sums=not config.no_combine)


def multiply_blocks(
    rows: torch.Tensor,  # [T, D] or [n, D]
    first: ExpertMatrix,
    second: ExpertMatrix,
    ids: torch.Tensor,
    blocks: Blocks,
    config: MoeRunnerConfig,
    tiles: Tiles,
    dtype: torch.dtype,
) -> torch.Tensor:  # [n, D]
    """What each choice's expert gives, without its weight."""
    from sglang.srt.layers.triton_ops.moe.grouped import grouped_product

    num_choices = ids.numel()
    hidden = grouped_product(
        *_round(rows, first, ids), first, Gate.of(config), blocks, num_choices, dtype, tiles.first
    )
    return grouped_product(
        *_round(hidden, second, ids), second, None, blocks, num_choices, dtype, tiles.second
    )


def _round(
    rows: torch.Tensor, matrix: ExpertMatrix, ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What a matrix multiplies: rows as they are, or their codes with a scale for each."""
    if matrix.kind != "channel":
        return rows, None
    if matrix.input_scale is None:
        return round_activations(rows, None)
    # Experts have scales of their own, so every choice has its own codes.
    if rows.shape[0] != ids.numel():
        rows = rows.repeat_interleave(ids.shape[1], dim=0)
    experts = ids.flatten().long().clamp(0, matrix.weight.shape[0] - 1)
    scales = matrix.input_scale[experts]  # [n, 1]
    return round_with(rows, scales), scales


def _why_not_matrix(matrix: ExpertMatrix, dtype: torch.dtype) -> str | None:
    weight, block = matrix.weight, matrix.block_size
    if weight.stride(-1) != 1:
        return "the rows of their weights do not lie in one piece"
    if matrix.kind == "plain" and weight.dtype != dtype:
        return f"their weights are {weight.dtype} and activations {dtype}"
    if block is not None and block[1] % 16 != 0:
        return f"blocks of {block[1]} columns are no multiple of 16"
    return None


@functools.cache
def _why_not_device(device: torch.device, kind: str, dtype: torch.dtype) -> str | None:
    if torch.version.hip is not None:
        return "the kernels are for NVIDIA GPUs"
    if not device.type == "cuda":
        return None
    found = torch.cuda.get_device_capability(device)
    if kind != "plain" and found < _FIRST_FP8:
        return f"eight-bit weights need compute capability 8.9; the GPU has {found[0]}.{found[1]}"
    if dtype == torch.bfloat16 and found < _FIRST_BF16:
        return f"bfloat16 needs compute capability 8.0; the GPU has {found[0]}.{found[1]}"
    return None


@functools.cache
def _shared_memory(device: torch.device) -> int:
    """Bytes that a program may have."""
    if device.type != "cuda":
        return Shape.shared_memory
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"
