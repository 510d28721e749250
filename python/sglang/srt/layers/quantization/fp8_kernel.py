"""Names of 8-bit floating point under the path that model files import. The kernels themselves are not implemented."""

from __future__ import annotations

from sglang.srt.layers.quantization.block_scales import fp8_dtype
from sglang.srt.utils.absent import absent_function

__all__ = [
    "fp8_dtype",
    "is_fp8_fnuz",
    "per_tensor_quant_mla_fp8",
    "per_token_group_quant_mla_deep_gemm_masked_fp8",
]


def is_fp8_fnuz() -> bool:
    """Whether 8-bit numbers are in AMD's format: False, that hardware is not supported."""
    return False


per_tensor_quant_mla_fp8 = absent_function("per_tensor_quant_mla_fp8", "latent attention in 8 bits")
per_token_group_quant_mla_deep_gemm_masked_fp8 = absent_function(
    "per_token_group_quant_mla_deep_gemm_masked_fp8", "latent attention in 8 bits"
)
