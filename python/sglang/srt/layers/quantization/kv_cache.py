"""Scales of a quantized cache, stored in the checkpoint beside the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import Parameter

from sglang.srt.layers.parameter import mark_filled
from sglang.srt.layers.quantization.base_config import QuantizeMethodBase
from sglang.srt.utils.errors import ConfigError

_NOT_LOADED = -1.0


class KVCacheScales(QuantizeMethodBase):
    """The method of an attention layer: `k_scale` and `v_scale`, float32 scalars that a checkpoint may have.

    Where only one is there it counts for both; where none is, both are 1.
    """

    def create_weights(self, layer: Any, *args: Any, **extra_weight_attrs: Any) -> None:
        for name in ("k_scale", "v_scale"):
            param = Parameter(torch.tensor(_NOT_LOADED, dtype=torch.float32), requires_grad=False)
            mark_filled(param)  # need not be in the checkpoint
            setattr(layer, name, param)

    def apply(self, layer: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        raise NotImplementedError("attention applies its scales itself")

    def process_weights_after_loading(self, layer: Any) -> None:
        """Raises ConfigError for a scale that is zero or no number."""
        loaded = layer.k_scale.item(), layer.v_scale.item()
        if any(scale == 0 or not math.isfinite(scale) for scale in loaded):
            raise ConfigError(
                f"the checkpoint's KV cache scales of layer {layer.layer_id} are {loaded[0]} and {loaded[1]}; they must be "
                "positive numbers"
            )
        k_scale, v_scale = loaded
        if max(loaded) < 0:
            k_scale = v_scale = 1.0
        set_kv_scales(
            layer, k_scale if k_scale > 0 else v_scale, v_scale if v_scale > 0 else k_scale
        )


def set_kv_scales(layer: Any, k_scale: float, v_scale: float) -> None:
    """Give a `RadixAttention` the scales of its cache, for kernels that take tensors and those that take numbers."""
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        current = getattr(layer, name)
        if current is None:
            setattr(layer, name, torch.tensor(scale, dtype=torch.float32))
        else:
            current.data.fill_(scale)
        setattr(layer, f"{name}_float", scale)
