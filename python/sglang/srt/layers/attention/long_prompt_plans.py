"""Plans of cuDNN's attention (`long_prompt.py`) for lengths that prompts often have, made while nothing is to be computed.

A plan takes 60 ms, the first of a process about a second because libraries are loaded. They are made one at a time in the thread that runs
steps: torch keeps plans by thread, and its choice of a kernel is the whole process's. Nothing of it delays the start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import nn

from sglang.srt.layers.attention.long_prompt import (
    LENGTH_MULTIPLE,
    MIN_TOKENS,
    attend_long_prompt,
    suits_long_prompt,
)
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention

logger = logging.getLogger(__name__)

# Longer prompts run for far longer than a plan takes to make.
_MOST_TOKENS = 16384


class PromptShape(NamedTuple):
    """What the plans of a layer depend on, besides the length."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scaling: float


class LongPromptPlans:
    """The plans that are still to be made, most useful first.

    Args:
        shapes: of the model's layers.
        longest: tokens that one step computes of a prompt at most.
        attend: `attend_long_prompt`, or what a test puts in its place.
    """

    def __init__(
        self,
        shapes: Iterable[PromptShape],
        longest: int,
        dtype: torch.dtype,
        device: torch.device,
        attend: Callable[..., torch.Tensor] = attend_long_prompt,
    ) -> None:
        shapes = list(shapes)
        self._dtype, self._device, self._attend = dtype, device, attend
        self._todo = [(shape, n) for n in common_lengths(longest) for shape in shapes]

    @torch.inference_mode()
    def make_next(self) -> bool:
        """Make one. False when there are no more."""
        if not self._todo:
            return False
        try:
            self._make(*self._todo.pop(0))
        except (
            Exception
        ) as error:  # boundary of idle work: what a prompt will meet is said to the prompt
            self._todo = []
            reason = str(error).partition("\n")[0]
            logger.warning("Attention of long prompts is not planned beforehand: %s", reason)
        return bool(self._todo)

    def _make(self, shape: PromptShape, num_tokens: int) -> None:
        """As a model does: q, k and v are columns of one projection, and strides are part of a plan."""
        heads, kv_heads, dim, scaling = shape
        widths = [heads * dim, kv_heads * dim, kv_heads * dim]
        qkv = torch.zeros(num_tokens, sum(widths), dtype=self._dtype, device=self._device)
        parts = (part.view(num_tokens, -1, dim) for part in qkv.split(widths, dim=-1))
        self._attend(*parts, scaling)


def common_lengths(longest: int) -> list[int]:
    """Numbers of tokens to plan for, up to `longest`: it and powers of two, as they are and padded; then every padded length.

    A length that is no multiple stands for all that are padded to the next one: padding makes tensors of other strides.
    """
    longest = min(longest, _MOST_TOKENS)
    if longest < MIN_TOKENS:
        return []
    powers = [2**n for n in range(longest.bit_length() - 1, 0, -1) if 2**n >= MIN_TOKENS]
    exact = [longest, *(n for n in powers if n % LENGTH_MULTIPLE == 0)]
    every = range(MIN_TOKENS + LENGTH_MULTIPLE, longest + 1, LENGTH_MULTIPLE)
    padded = [n - 1 for n in (*exact, *every) if n > MIN_TOKENS]
    return list(dict.fromkeys([*exact, *padded]))


def shapes_of(model: nn.Module, dtype: torch.dtype, device: torch.device) -> list[PromptShape]:
    """Shapes of the layers of `model` whose long prompts cuDNN computes, each once."""
    found: dict[PromptShape, None] = {}
    for layer in model.modules():
        if isinstance(layer, RadixAttention) and _is_plain(layer):
            heads, kv_heads, dim = layer.tp_q_head_num, layer.tp_k_head_num, layer.qk_head_dim
            example = torch.empty(1, dtype=dtype, device=device).expand(MIN_TOKENS, heads, dim)
            if suits_long_prompt(example):
                found[PromptShape(heads, kv_heads, dim, layer.scaling)] = None
    return list(found)


def _is_plain(layer: RadixAttention) -> bool:
    return (
        layer.attn_type == AttentionType.DECODER
        and not layer.is_cross_attention
        and not layer.logit_cap
        and layer.sliding_window_size <= 0
        and layer.v_head_dim == layer.qk_head_dim
    )
