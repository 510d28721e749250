"""Mixture of experts: routing (`topk`), the layer of experts (`fused_moe_triton.layer`) and its arithmetic (`experts`)."""

from __future__ import annotations

from sglang.srt.layers.moe.utils import (
    get_deepep_mode,
    get_moe_a2a_backend,
    get_moe_runner_backend,
    should_use_flashinfer_cutlass_moe_fp4_allgather,
)

__all__ = [
    "get_deepep_mode",
    "get_moe_a2a_backend",
    "get_moe_runner_backend",
    "should_use_flashinfer_cutlass_moe_fp4_allgather",
]
