"""The class that model files use for experts when they leave the choice to the engine."""

from __future__ import annotations

from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.utils.absent import absent_class

DeepEPMoE = absent_class("DeepEPMoE", "DeepEP all-to-all between ranks", FusedMoE)


def get_moe_impl_class(quant_config: QuantizationConfig | None) -> type[FusedMoE]:
    """Always `FusedMoE`: it serves tensor and expert parallelism."""
    return FusedMoE
