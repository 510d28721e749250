"""Every form in which the kernels of a layer of experts may be launched, for compiling them before the first step that needs them.

How a layer is cut into programs follows from the number of tokens, and each cut is a kernel of its own. A start's rehearsal runs few numbers
of tokens; a prompt of another length would wait for the compiler.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from sglang.srt.layers.moe.expert_matrix import ExpertMatrix
from sglang.srt.layers.moe.fused_experts import (
    multiply_blocks,
    run_fused,
    shape_of,
    why_not_fused,
)
from sglang.srt.layers.moe.fused_moe_triton import FusedMoE
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.moe.tiles import Tiles, choose_tiles, tile_bounds
from sglang.srt.layers.moe.unquantized import ExpertsMethod


def launch_expert_forms(model: nn.Module, most_tokens: int) -> None:
    """Launch the kernels of the experts of `model` in every form that steps of up to `most_tokens` tokens ask for, but those that have one
    form only, which every step has: of the router and of the sum.

    Harmless where kernels run and where they are only noted: all ids are those of the first expert, and nothing reads the results. Layers
    of other methods than ours, or of an unknown number of choices, launch nothing; neither does what is computed in plain torch.
    """
    seen = set()
    for layer in model.modules():
        if not isinstance(layer, FusedMoE) or not isinstance(layer.quant_method, ExpertsMethod):
            continue
        config = layer.moe_runner_config
        params = ((name, p.shape, p.dtype) for name, p in layer.named_parameters(recurse=False))
        alike = (
            type(layer.quant_method),
            dataclasses.astuple(dataclasses.replace(config, layer_id=None)),
            *params,
        )
        if alike not in seen:
            seen.add(alike)
            launch_forms(*layer.quant_method.get_matrices(layer), config, most_tokens)


def launch_forms(
    first: ExpertMatrix, second: ExpertMatrix, config: MoeRunnerConfig, most_tokens: int
) -> None:
    """`launch_expert_forms` of one layer."""
    dtype, top_k = config.params_dtype or torch.get_default_dtype(), config.top_k
    if not top_k or why_not_fused(first, second, config, dtype) is not None:
        return
    from sglang.srt.layers.triton_ops.moe.sort import sort_bounds, sort_by_expert

    bounds = [*tile_bounds(shape_of(first, second, config, 1, top_k, dtype)), *sort_bounds()]
    launched: set[Tiles] = set()
    for num_tokens in sorted({bound // top_k + 1 for bound in bounds}):
        if num_tokens > most_tokens:
            break
        tiles = choose_tiles(shape_of(first, second, config, num_tokens, top_k, dtype))
        if not tiles.is_single:
            ids = torch.zeros(num_tokens, top_k, dtype=torch.int32, device=first.weight.device)
            sort_by_expert(ids, first.weight.shape[0], tiles.block_m)
        if tiles not in launched:
            launched.add(tiles)
            _launch_products(first, second, config, tiles, dtype, top_k)


def _launch_products(
    first: ExpertMatrix,
    second: ExpertMatrix,
    config: MoeRunnerConfig,
    tiles: Tiles,
    dtype: torch.dtype,
    top_k: int,
) -> None:
    """Of one token: how many rows are multiplied is no part of a form."""
    from sglang.srt.layers.triton_ops.moe.sort import no_blocks

    device, width = first.weight.device, first.weight.shape[2]
    ids = torch.zeros(1, top_k, dtype=torch.int32, device=device)
    if tiles.is_single:
        x = torch.zeros(1, width, dtype=dtype, device=device)
        run_fused(x, first, second, torch.zeros_like(ids, dtype=torch.float32), ids, config, tiles)
        return
    # With the weight on the input there is a row for each choice.
    num_rows = top_k if config.apply_router_weight_on_input else 1
    rows = torch.zeros(num_rows, width, dtype=dtype, device=device)
    blocks = no_blocks(tiles.block_m, device)
    multiply_blocks(rows, first, second, ids, blocks, config, tiles, dtype)
