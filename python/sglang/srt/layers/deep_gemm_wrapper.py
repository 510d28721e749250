"""DeepGEMM's products of 8-bit floating point matrices. Compatibility: they are not used."""

from __future__ import annotations

import contextlib

from sglang.srt.utils.absent import absent_function

ENABLE_JIT_DEEPGEMM = False
DEEPGEMM_BLACKWELL = False
DEEPGEMM_SCALE_UE8M0 = False

grouped_gemm_nt_f8f8bf16_masked = absent_function("grouped_gemm_nt_f8f8bf16_masked", "DeepGEMM")


def configure_deep_gemm_num_sms(num_sms: int | None) -> contextlib.AbstractContextManager[None]:
    """Would limit the processors that DeepGEMM takes; does nothing."""
    return contextlib.nullcontext()
