"""The 8-bit cache of sparse attention. Compatibility: not implemented."""

from __future__ import annotations

from sglang.srt.utils.absent import absent_function

dequantize_k_cache_paged = absent_function(
    "dequantize_k_cache_paged", "the 8-bit cache of sparse attention"
)
