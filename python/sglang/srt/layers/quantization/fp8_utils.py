"""Conversions of quantized weights under the path that model files import."""

from __future__ import annotations

from sglang.srt.layers.quantization.block_scales import (
    block_quant_dequant,
    block_quant_to_tensor_quant,
    channel_quant_to_tensor_quant,
    normalize_e4m3fn_to_e4m3fnuz,
)
from sglang.srt.layers.quantization.mxfp4 import dequant_mxfp4
from sglang.srt.utils.absent import absent_function

__all__ = [
    "block_quant_dequant",
    "block_quant_to_tensor_quant",
    "channel_quant_to_tensor_quant",
    "dequant_mxfp4",
    "inverse_transform_scale_ue8m0",
    "normalize_e4m3fn_to_e4m3fnuz",
    "quant_weight_ue8m0",
    "requant_weight_ue8m0_inplace",
]

_WHAT = "scales that are powers of two"
inverse_transform_scale_ue8m0 = absent_function("inverse_transform_scale_ue8m0", _WHAT)
quant_weight_ue8m0 = absent_function("quant_weight_ue8m0", _WHAT)
requant_weight_ue8m0_inplace = absent_function("requant_weight_ue8m0_inplace", _WHAT)
