"""Keeps what is no number within its request, for kernels that read values by tiles.

Compiled kernels multiply the last tile of a whole prompt's values beyond its end, which is where the next prompt of the step begins. Its
keys are masked, so their weights are 0; but 0 times infinity is not 0, and a request whose numbers have run over would spoil the one
before it. Masked scores are replaced, whatever they were: in a key it does no harm.
"""

from __future__ import annotations

import torch
from torch import nn

from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.layers.triton_ops import has_triton


def move_to_keys(k: torch.Tensor, v: torch.Tensor) -> None:
    """Make all values of keys [T, K, d] and values [T, K, d_v] finite, without a change to what their queries see.

    Where a value of a token and kv head is not, its values become 0 and its key becomes NaN: queries that see it still get NaN. When all
    values are finite nothing is written.
    """
    if v.is_cuda and has_triton() and k.stride(-1) == v.stride(-1) == 1:
        from sglang.srt.layers.attention.triton_ops.finite_values import move_to_keys_in_place

        move_to_keys_in_place(k, v)
        return
    is_lost = ~torch.isfinite(v).all(dim=-1, keepdim=True)
    k.masked_fill_(is_lost, float("nan"))
    v.masked_fill_(is_lost, 0.0)


def launch_moves(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Launch the kernel in every form that the layers of `model` ask for, for compiling it before the first prompts that need it."""
    layers = (module for module in model.modules() if isinstance(module, RadixAttention))
    heads = {(layer.tp_k_head_num, layer.qk_head_dim, layer.v_head_dim) for layer in layers}
    for num_kv_heads, dim, v_dim in heads:
        k = torch.zeros(1, num_kv_heads, dim, dtype=dtype, device=device)
        move_to_keys(k, k.new_zeros(1, num_kv_heads, v_dim))
