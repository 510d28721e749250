"""Helpers of model files around layers and weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

from sglang.srt.layers.weight_placement import pad_or_narrow_weight
from sglang.srt.utils.layer_list import PPMissingLayer

__all__ = ["MultiPlatformOp", "PPMissingLayer", "get_layer_id", "pad_or_narrow_weight"]

_LAYER_NUMBER = re.compile(r"layers\.(\d+)\.")


def get_layer_id(weight_name: str) -> int | None:
    """The n of `layers.<n>.` in a weight name, None without one."""
    match = _LAYER_NUMBER.search(weight_name)
    return int(match.group(1)) if match else None


class MultiPlatformOp(torch.nn.Module):
    """An operation with one implementation per kind of device.

    Subclasses define `forward_native` in plain torch, and `forward_cuda` where a GPU does better.
    The choice is made once, from the device under which the module is built.
    """

    def __init__(self) -> None:
        super().__init__()
        self._forward_method = self.dispatch_forward()

    def dispatch_forward(self) -> Callable[..., Any]:
        """The implementation that `forward` calls."""
        is_gpu = torch.get_default_device().type == "cuda"
        return self.forward_cuda if is_gpu else self.forward_native

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward_method(*args, **kwargs)

    def forward_native(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must define forward_native")

    def forward_cuda(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward_native(*args, **kwargs)
