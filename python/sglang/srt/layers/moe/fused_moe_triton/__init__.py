"""The layer of experts under the path that model files import."""

from __future__ import annotations

from sglang.srt.layers.moe.fused_moe_triton.fused_moe import fused_moe
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE, FusedMoeWeightScaleSupported

__all__ = ["FusedMoE", "FusedMoeWeightScaleSupported", "fused_moe"]
