"""What model files ask about the machinery under the experts.

Compatibility: there is one way to run experts here and no all-to-all dispatch, so the questions have constant answers.
"""

from __future__ import annotations

from enum import Enum, IntEnum

import torch


class MoeA2ABackend(Enum):
    """How tokens travel between expert-parallel ranks; NONE: every rank holds all tokens."""

    NONE = "none"
    DEEPEP = "deepep"
    MOONCAKE = "mooncake"
    FLASHINFER = "flashinfer"
    ASCEND_FUSEEP = "ascend_fuseep"
    MORI = "mori"

    def is_none(self) -> bool:
        return self is MoeA2ABackend.NONE

    def is_deepep(self) -> bool:
        return self is MoeA2ABackend.DEEPEP

    def is_mooncake(self) -> bool:
        return self is MoeA2ABackend.MOONCAKE

    def is_flashinfer(self) -> bool:
        return self is MoeA2ABackend.FLASHINFER

    def is_ascend_fuseep(self) -> bool:
        return self is MoeA2ABackend.ASCEND_FUSEEP

    def is_mori(self) -> bool:
        return self is MoeA2ABackend.MORI


class MoeRunnerBackend(Enum):
    """What computes the experts; AUTO is this package's own choice."""

    AUTO = "auto"
    TRITON = "triton"
    TRITON_KERNELS = "triton_kernel"
    DEEP_GEMM = "deep_gemm"
    FLASHINFER_TRTLLM = "flashinfer_trtllm"
    FLASHINFER_CUTLASS = "flashinfer_cutlass"
    FLASHINFER_MXFP4 = "flashinfer_mxfp4"
    CUTLASS = "cutlass"
    MARLIN = "marlin"

    def is_auto(self) -> bool:
        return self is MoeRunnerBackend.AUTO

    def is_triton(self) -> bool:
        return self is MoeRunnerBackend.TRITON

    def is_triton_kernels(self) -> bool:
        return self is MoeRunnerBackend.TRITON_KERNELS

    def is_deep_gemm(self) -> bool:
        return self is MoeRunnerBackend.DEEP_GEMM

    def is_flashinfer_trtllm(self) -> bool:
        return self is MoeRunnerBackend.FLASHINFER_TRTLLM

    def is_flashinfer_cutlass(self) -> bool:
        return self is MoeRunnerBackend.FLASHINFER_CUTLASS

    def is_flashinfer_mxfp4(self) -> bool:
        return self is MoeRunnerBackend.FLASHINFER_MXFP4

    def is_cutlass(self) -> bool:
        return self is MoeRunnerBackend.CUTLASS

    def is_marlin(self) -> bool:
        return self is MoeRunnerBackend.MARLIN


class RoutingMethodType(IntEnum):
    """A hint for kernels that fuse the routing; nothing reads it here."""

    Default = 0
    Renormalize = 1
    DeepSeekV3 = 2
    Llama4 = 3
    RenormalizeNaive = 4
    TopK = 5
    Unspecified = 6


def get_moe_a2a_backend() -> MoeA2ABackend:
    return MoeA2ABackend.NONE


def get_moe_runner_backend() -> MoeRunnerBackend:
    return MoeRunnerBackend.AUTO


def get_deepep_mode() -> None:
    """None: there is no DeepEP."""
    return None


def should_use_flashinfer_cutlass_moe_fp4_allgather() -> bool:
    return False


def filter_moe_weight_param_global_expert(
    name: str, x: torch.Tensor, num_local_experts: int
) -> bool:
    """Whether a parameter holds one slice per local expert, so that rebalancing may move it."""
    is_global = vars(x).get("_sglang_require_global_experts", False)
    return not is_global and x.dim() > 0 and x.shape[0] == num_local_experts
