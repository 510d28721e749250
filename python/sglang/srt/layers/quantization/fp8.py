"""8-bit floating point checkpoints. Compatibility: not implemented; such checkpoints are refused when their config is read."""

from __future__ import annotations

from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.utils.absent import absent_class

Fp8Config = absent_class("Fp8Config", "8-bit floating point weights", QuantizationConfig)
