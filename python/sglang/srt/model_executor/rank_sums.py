"""Leaves sums over tensor-parallel ranks to the norm that follows them, where they can be one kernel.

In a plain pre-norm layer the output of attention goes nowhere but into the norm before the MLP, and the output of the MLP nowhere but
into the first norm of the next layer. There the projection need not sum and the norm sums first (`RMSNorm.sums_ranks`): the same
arithmetic, in one kernel where the group has peer memory. Model files know nothing of it; a layer, attention or MLP with a `forward`
of its own is left alone.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.linear import RowParallelLinear
from sglang.srt.models.common.attention import GQAttention
from sglang.srt.models.common.causal_lm import DecoderModel
from sglang.srt.models.common.decoder_layer import PreNormLayer
from sglang.srt.models.common.mlp import GatedMLP
from sglang.srt.models.llama import LlamaDecoderLayer

_STRAIGHT = (PreNormLayer.forward, LlamaDecoderLayer.forward)


def leave_sums_to_norms(model: nn.Module) -> int:
    """Prepare `model`, loaded on several ranks; returns the number of sums that norms now do. Not for models whose hidden states
    between layers somebody reads."""
    count = 0
    for module in model.modules():
        if isinstance(module, DecoderModel) and type(module).forward is DecoderModel.forward:
            count += _prepare(module)
    return count


def _prepare(model: DecoderModel) -> int:
    layers: list[Any] = list(model.layers)
    followers = [_input_norm(layer) for layer in layers[1:]] + [model.norm]
    count = 0
    for layer, follower in zip(layers, followers, strict=True):
        if not _is_straight(layer):
            continue
        if type(layer.self_attn).forward is GQAttention.forward:
            count += _move(layer.self_attn.o_proj, layer.post_attention_layernorm)
        if (
            type(layer.mlp).forward is GatedMLP.forward
            and type(layer.mlp).multiply is GatedMLP.multiply
        ):
            count += _move(layer.mlp.down_proj, follower)
    return count


def _is_straight(layer: nn.Module) -> bool:
    return type(layer).forward in _STRAIGHT


def _input_norm(layer: Any) -> nn.Module | None:
    """The norm that alone reads the layer's first input."""
    return layer.input_layernorm if _is_straight(layer) else None


def _move(projection: Any, norm: nn.Module | None) -> bool:
    """Whether the projection's sum could be left to `norm`."""
    if (
        type(norm) is not RMSNorm
        or type(projection) is not RowParallelLinear
        or not projection.reduce_results
        or projection.use_dp_attention_reduce
        or projection.skip_bias_add
        or projection.tp_size == 1
    ):
        return False
    projection.reduce_results = False
    norm.sums_ranks = True
    return True
