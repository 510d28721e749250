"""Kernels of experts under the path that model files import. Compatibility: not implemented."""

from __future__ import annotations

from sglang.srt.utils.absent import absent_function

zero_experts_compute_triton = absent_function(
    "zero_experts_compute_triton", "experts that compute nothing"
)
