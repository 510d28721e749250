"""What passes between a layer of experts and its quantization method. Nothing is dispatched: every rank holds all tokens.

Dispatchers between ranks are named, not implemented.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol

import torch

from sglang.srt.layers.moe.topk import StandardTopKOutput


class StandardDispatchOutput(NamedTuple):
    """The tokens and where they go."""

    hidden_states: torch.Tensor  # [T, D]
    topk_output: StandardTopKOutput


class StandardCombineInput(NamedTuple):
    """What the experts of this rank made of them; ranks are not summed yet."""

    hidden_states: torch.Tensor  # [T, D]


class DispatchOutput(Protocol):
    """What a quantization method is given."""

    @property
    def hidden_states(self) -> torch.Tensor: ...


class CombineInput(Protocol):
    """What a quantization method returns."""

    @property
    def hidden_states(self) -> torch.Tensor: ...


class BaseDispatcher(ABC):
    """Sends tokens to the ranks of their experts and brings the results back. Compatibility: no layer has one."""

    @abstractmethod
    def dispatch(self, hidden_states: torch.Tensor, topk_output: Any) -> DispatchOutput:
        """The tokens for this rank's experts."""

    @abstractmethod
    def combine(self, combine_input: CombineInput) -> torch.Tensor:
        """The weighted sums [T, D] of this rank's tokens."""


def __getattr__(name: str) -> Any:
    """`DeepEPDispatcher`, which cannot be constructed; made when somebody asks for it."""
    if name != "DeepEPDispatcher":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sglang.srt.layers.moe.token_dispatcher.deepep import DeepEPDispatcher

    return DeepEPDispatcher
