"""What passes between a layer of experts and its quantization method. Nothing is dispatched: every rank holds all tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch

from sglang.srt.layers.moe.topk import StandardTopKOutput


class StandardDispatchOutput(NamedTuple):
    """The tokens and where they go."""

    hidden_states: torch.Tensor  # [T, D]
    topk_output: StandardTopKOutput


class StandardCombineInput(NamedTuple):
    """What the experts of this rank made of them; ranks are not summed yet."""

    hidden_states: torch.Tensor  # [T, D]
