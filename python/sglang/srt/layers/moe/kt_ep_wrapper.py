"""Experts that run partly on the host. Compatibility: not implemented."""

from __future__ import annotations

from sglang.srt.layers.quantization.base_config import FusedMoEMethodBase
from sglang.srt.utils.absent import absent_class

KTEPWrapperMethod = absent_class(
    "KTEPWrapperMethod", "running experts partly on the host", FusedMoEMethodBase
)
