"""Flags of data types and quantization."""

from __future__ import annotations

import dataclasses

from sglang.srt.arg_groups.fields import IGNORED, REFUSED, flag

QUANTIZATIONS = (
    "auto-round",
    "awq",
    "awq_marlin",
    "bitsandbytes",
    "compressed-tensors",
    "fp8",
    "gguf",
    "gptq",
    "gptq_marlin",
    "marlin",
    "modelopt",
    "modelopt_fp4",
    "modelopt_fp8",
    "modelslim",
    "moe_wna16",
    "mxfp4",
    "mxfp8",
    "petit_nvfp4",
    "qoq",
    "quark_int4fp8_moe",
    "w4afp8",
    "w8a8_fp8",
    "w8a8_int8",
)


@dataclasses.dataclass(kw_only=True)
class PrecisionArgs:
    """Data types and quantization."""

    dtype: str = flag(
        "auto",
        "Type of weights and activations; auto takes the model's.",
        choices=("auto", "half", "float16", "bfloat16", "float", "float32"),
    )
    quantization: str | None = flag(
        None,
        "Quantization of the weights; unset: the checkpoint's.",
        choices=QUANTIZATIONS,
        supports=("fp8",),
    )
    quantization_param_path: str | None = flag(
        None, "JSON file with scales of an fp8_e4m3 KV cache.", tier="T2"
    )
    kv_cache_dtype: str = flag(
        "auto",
        "Type of the KV cache; auto takes the model's.",
        choices=("auto", "fp8_e5m2", "fp8_e4m3", "bf16", "bfloat16", "fp4_e2m1"),
        supports=("auto", "fp8_e5m2", "fp8_e4m3", "bf16", "bfloat16"),
    )
    enable_fp32_lm_head: bool = flag(False, "Compute logits in float32.", status=REFUSED, tier="T2")
    torchao_config: str = flag("", "Quantization with torchao.", status=REFUSED, tier="T3")
    # These two change the weights, so they are refused although nobody else has a use for them.
    modelopt_quant: str | None = flag(
        None, "Quantization with ModelOpt.", status=REFUSED, tier="T4"
    )
    quantize_and_serve: bool = flag(
        False, "Quantize with ModelOpt, then serve.", status=REFUSED, tier="T4"
    )
    modelopt_checkpoint_restore_path: str | None = flag(
        None, "ModelOpt checkpoint to restore.", status=IGNORED, tier="T4"
    )
    modelopt_checkpoint_save_path: str | None = flag(
        None, "Where to save the ModelOpt checkpoint.", status=IGNORED, tier="T4"
    )
    modelopt_export_path: str | None = flag(
        None, "Where to export the ModelOpt model.", status=IGNORED, tier="T4"
    )
