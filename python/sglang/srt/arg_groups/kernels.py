"""Flags that choose kernels and captured graphs."""

from __future__ import annotations

import dataclasses

from sglang.srt.arg_groups.fields import ACCEPTED, REFUSED, flag

ATTENTION_BACKENDS = (
    "triton",
    "torch_native",
    "flashinfer",
    "fa3",
    "flex_attention",
    "fa4",
    "flashmla",
    "cutlass_mla",
    "trtllm_mla",
    "trtllm_mha",
    "nsa",
    "dual_chunk_flash_attn",
    "aiter",
    "wave",
    "intel_amx",
    "ascend",
    "intel_xpu",
)
# intel_amx becomes torch_native.
READY_ATTENTION_BACKENDS = ("torch_native", "triton", "flashinfer", "fa3", "intel_amx")
MOE_RUNNER_BACKENDS = (
    "auto",
    "triton",
    "triton_kernel",
    "deep_gemm",
    "cutlass",
    "flashinfer_trtllm",
    "flashinfer_cutlass",
    "flashinfer_mxfp4",
    "flashinfer_cutedsl",
)


@dataclasses.dataclass(kw_only=True)
class KernelArgs:
    """Kernels and graphs."""

    attention_backend: str | None = flag(
        None,
        "Attention kernels; unset: by device and model.",
        choices=ATTENTION_BACKENDS,
        supports=READY_ATTENTION_BACKENDS,
    )
    prefill_attention_backend: str | None = flag(
        None,
        "Attention kernels of prefill, over --attention-backend.",
        tier="T2",
        choices=ATTENTION_BACKENDS,
        supports=READY_ATTENTION_BACKENDS,
    )
    decode_attention_backend: str | None = flag(
        None,
        "Attention kernels of decode, over --attention-backend.",
        tier="T2",
        choices=ATTENTION_BACKENDS,
        supports=READY_ATTENTION_BACKENDS,
    )
    sampling_backend: str | None = flag(
        None,
        "Sampling kernels; unset: pytorch.",
        choices=("flashinfer", "pytorch", "ascend"),
        supports=("pytorch",),
    )
    grammar_backend: str = flag(
        "xgrammar",
        "Compiler of structured output; none refuses such requests.",
        choices=("xgrammar", "outlines", "llguidance", "none"),
        supports=("xgrammar", "llguidance", "none"),
    )
    mm_attention_backend: str | None = flag(
        None,
        "Attention of vision towers; unset: sdpa. triton_attn is for GPUs; elsewhere sdpa takes its place.",
        choices=("sdpa", "fa3", "triton_attn", "fa4", "ascend_attn", "aiter_attn"),
        supports=("sdpa", "triton_attn"),
    )
    moe_runner_backend: str = flag(
        "auto",
        "Kernels of the experts.",
        choices=MOE_RUNNER_BACKENDS,
        supports=("auto",),
    )
    fp8_gemm_runner_backend: str = flag(
        "auto",
        "Kernels of fp8 matrix products.",
        status=REFUSED,
        tier="T2",
        option="--fp8-gemm-backend",
        choices=(
            "auto",
            "deep_gemm",
            "flashinfer_trtllm",
            "flashinfer_deepgemm",
            "cutlass",
            "triton",
            "aiter",
        ),
    )
    fp4_gemm_runner_backend: str = flag(
        "flashinfer_cutlass",
        "Kernels of fp4 matrix products.",
        status=REFUSED,
        tier="T3",
        option="--fp4-gemm-backend",
    )
    cuda_graph_max_bs: int | None = flag(
        None,
        "Largest captured batch; unset: by device memory.",
        minimum=1,
    )
    cuda_graph_bs: list[int] | None = flag(
        None, "Captured batch sizes; unset: computed.", minimum=1
    )
    disable_cuda_graph: bool = flag(False, "Capture no graphs.")
    disable_cuda_graph_padding: bool = flag(False, "Replay a graph only at its exact batch size.")
    enable_profile_cuda_graph: bool = flag(False, "Profile the capture.", status=REFUSED, tier="T3")
    enable_cudagraph_gc: bool = flag(
        False, "Collect garbage during the capture.", status=REFUSED, tier="T3"
    )
    enable_layerwise_nvtx_marker: bool = flag(
        False, "NVTX range per layer.", status=REFUSED, tier="T3"
    )
    enable_torch_compile: bool = flag(
        False, "Compile the model with torch.", status=REFUSED, tier="T2"
    )
    torch_compile_max_bs: int = flag(32, "Largest compiled batch.", status=REFUSED, tier="T2")
    enable_torch_compile_debug_mode: bool = flag(
        False, "Check the compiled model.", status=REFUSED, tier="T2"
    )
    enable_piecewise_cuda_graph: bool = flag(
        False, "Capture prefill in pieces.", status=REFUSED, tier="T3"
    )
    piecewise_cuda_graph_tokens: list[int] | None = flag(
        None, "Captured prefill sizes.", status=REFUSED, tier="T3"
    )
    piecewise_cuda_graph_max_tokens: int | None = flag(
        None, "Largest captured prefill.", status=REFUSED, tier="T3"
    )
    piecewise_cuda_graph_compiler: str = flag(
        "eager", "Compiler of the pieces.", status=REFUSED, tier="T3"
    )
    triton_attention_reduce_in_fp32: bool = flag(
        False, "Reduce in float32 in the triton backend.", status=REFUSED, tier="T2"
    )
    triton_attention_num_kv_splits: int = flag(
        8, "Splits of the KV length in triton decode.", status=REFUSED, tier="T2", minimum=1
    )
    triton_attention_split_tile_size: int | None = flag(
        None, "Size of such a split.", status=REFUSED, tier="T2", minimum=1
    )
    enable_deterministic_inference: bool = flag(
        False, "Results that do not depend on the batch.", status=REFUSED, tier="T2"
    )
    rl_on_policy_target: str | None = flag(
        None, "Match the numerics of a trainer.", status=REFUSED, tier="T3", choices=("fsdp",)
    )
    enable_nan_detection: bool = flag(
        False, "Check logits for NaN before masks and penalties, and name the request.", tier="T2"
    )


@dataclasses.dataclass(kw_only=True)
class TuningArgs:
    """Tuning of single kernels."""

    flashinfer_mla_disable_ragged: bool = flag(
        False, "No ragged prefill in the flashinfer MLA backend.", status=ACCEPTED, tier="T3"
    )
    # Model files also write this one.
    disable_shared_experts_fusion: bool = flag(
        False, "Run shared experts apart from the routed ones.", status=ACCEPTED, tier="T3"
    )
    disable_chunked_prefix_cache: bool = flag(
        False, "No chunked prefix in MLA prefill.", status=ACCEPTED, tier="T3"
    )
    enable_flashinfer_allreduce_fusion: bool = flag(
        False, "Fuse all-reduce with the norm.", status=REFUSED, tier="T3"
    )
    disable_flashinfer_autotune: bool = flag(
        False, "No tuning of flashinfer at start.", status=ACCEPTED, tier="T3"
    )
    flashinfer_mxfp4_moe_precision: str = flag(
        "default",
        "Activations of mxfp4 experts.",
        status=REFUSED,
        tier="T3",
        choices=("default", "bf16"),
    )
    disable_flashinfer_cutlass_moe_fp4_allgather: bool = flag(
        False, "Gather activations before quantizing them.", status=ACCEPTED, tier="T3"
    )
    enable_fused_qk_norm_rope: bool = flag(
        False, "Fuse the norm of q and k with rope.", status=REFUSED, tier="T3"
    )
    enable_attn_tp_input_scattered: bool = flag(
        False, "Scatter the input of attention.", status=REFUSED, tier="T3"
    )
    nsa_prefill_backend: str | None = flag(
        None, "Sparse attention kernels of prefill.", status=REFUSED, tier="T3"
    )
    nsa_decode_backend: str | None = flag(
        None, "Sparse attention kernels of decode.", status=REFUSED, tier="T3"
    )
    enable_nsa_prefill_context_parallel: bool = flag(
        False, "Context parallel sparse prefill.", status=REFUSED, tier="T3"
    )
    nsa_prefill_cp_mode: str | None = flag(
        None, "How the context is split.", status=REFUSED, tier="T3"
    )
    max_mamba_cache_size: int | None = flag(
        None, "Recurrent states kept.", status=REFUSED, tier="T3", minimum=1
    )
    mamba_ssm_dtype: str | None = flag(
        None, "Type of the recurrent state.", status=REFUSED, tier="T3"
    )
    mamba_full_memory_ratio: float = flag(
        0.9, "Memory of recurrent states to that of the KV cache.", status=REFUSED, tier="T3"
    )
    mamba_scheduler_strategy: str = flag(
        "auto",
        "How recurrent states are buffered.",
        status=REFUSED,
        tier="T3",
        choices=("auto", "no_buffer", "extra_buffer"),
    )
    mamba_track_interval: int = flag(
        256, "Tokens between kept states.", status=REFUSED, tier="T3", minimum=1
    )
    mamba_backend: str = flag("triton", "Kernels of recurrent layers.", status=REFUSED, tier="T3")
