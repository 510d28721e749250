"""Flags of devices, parallelism and several machines."""

from __future__ import annotations

import dataclasses

from sglang.srt.arg_groups.fields import ACCEPTED, REFUSED, flag


@dataclasses.dataclass(kw_only=True)
class ParallelArgs:
    """Parallelism and several machines."""

    tp_size: int = flag(
        1,
        "Tensor parallel ranks, over all machines.",
        option="--tensor-parallel-size",
        aliases=("--tp-size", "--tp"),
        minimum=1,
    )
    pp_size: int = flag(
        1,
        "Pipeline stages.",
        status=REFUSED,
        tier="T3",
        option="--pipeline-parallel-size",
        aliases=("--pp-size", "--pp"),
        minimum=1,
    )
    pp_max_micro_batch_size: int | None = flag(
        None, "Requests per micro batch of the pipeline.", status=REFUSED, tier="T3", minimum=1
    )
    pp_async_batch_depth: int = flag(
        0, "Extra batches in flight in the pipeline.", status=REFUSED, tier="T3", minimum=0
    )
    dp_size: int = flag(
        1,
        "Replicas behind one endpoint.",
        status=REFUSED,
        tier="T2",
        option="--data-parallel-size",
        aliases=("--dp-size", "--dp"),
        minimum=1,
    )
    load_balance_method: str = flag(
        "auto",
        "How requests are spread over replicas; auto is round_robin.",
        status=ACCEPTED,
        tier="T2",
        choices=(
            "auto",
            "round_robin",
            "follow_bootstrap_room",
            "total_requests",
            "total_tokens",
        ),
    )
    enable_dp_attention: bool = flag(
        False, "Data parallel attention with tensor parallel experts.", status=REFUSED, tier="T3"
    )
    enable_dp_lm_head: bool = flag(False, "Data parallel output head.", status=REFUSED, tier="T3")
    ep_size: int = flag(
        1,
        "Expert parallel ranks.",
        status=REFUSED,
        tier="T3",
        option="--expert-parallel-size",
        aliases=("--ep-size", "--ep"),
        minimum=1,
    )
    attn_cp_size: int = flag(
        1,
        "Context parallel ranks of attention.",
        status=REFUSED,
        tier="T3",
        option="--attention-context-parallel-size",
        aliases=("--attn-cp-size",),
        minimum=1,
    )
    moe_dp_size: int = flag(
        1,
        "Data parallel ranks of the experts.",
        status=REFUSED,
        tier="T3",
        option="--moe-data-parallel-size",
        aliases=("--moe-dp-size",),
        minimum=1,
    )
    dist_init_addr: str | None = flag(
        None,
        "host:port of the first machine, where the ranks meet; the same on every machine.",
        tier="T2",
        aliases=("--nccl-init-addr",),
    )
    nnodes: int = flag(1, "Machines.", tier="T2", minimum=1)
    node_rank: int = flag(
        0, "Number of this machine; only machine 0 answers requests.", tier="T2", minimum=0
    )
    dist_timeout: int | None = flag(
        None, "Seconds to wait for other ranks; unset: torch's own limits.", tier="T2", minimum=1
    )
    base_gpu_id: int = flag(0, "First GPU to use.", minimum=0)
    gpu_id_step: int = flag(1, "Distance between the GPUs to use.", minimum=1)
    device: str = flag(
        "auto",
        "Where to run; auto takes CUDA when there is a GPU.",
        choices=("auto", "cuda", "cpu", "xpu", "hpu", "npu"),
        supports=("auto", "cuda", "cpu"),
    )
    enable_p2p_check: bool = flag(
        False, "Test peer access between GPUs.", status=ACCEPTED, tier="T2"
    )
    disable_custom_all_reduce: bool = flag(
        False, "Sum through NCCL only, never through the GPUs' peer memory.", tier="T2"
    )
    numa_node: list[int] | None = flag(None, "NUMA node per rank.", status=REFUSED, tier="T3")
    enable_nccl_nvls: bool = flag(False, "NVLink SHARP in NCCL.", status=REFUSED, tier="T3")
    enable_symm_mem: bool = flag(False, "Symmetric memory in NCCL.", status=REFUSED, tier="T3")
    enable_torch_symm_mem: bool = flag(
        False, "Symmetric memory of torch.", status=REFUSED, tier="T3"
    )
    enable_mscclpp: bool = flag(False, "All-reduce of MSCCL++.", status=REFUSED, tier="T3")
    moe_dense_tp_size: int | None = flag(
        None, "Tensor parallel ranks of dense layers in MoE models.", status=REFUSED, tier="T3"
    )
    enable_two_batch_overlap: bool = flag(
        False, "Overlap two micro batches.", status=REFUSED, tier="T3"
    )
    enable_single_batch_overlap: bool = flag(
        False, "Overlap communication inside a batch.", status=REFUSED, tier="T3"
    )
    tbo_token_distribution_threshold: float = flag(
        0.48, "How unequal the two micro batches may be.", status=REFUSED, tier="T3"
    )


@dataclasses.dataclass(kw_only=True)
class ExpertArgs:
    """Expert parallelism and balance."""

    moe_a2a_backend: str = flag(
        "none",
        "All-to-all between expert ranks.",
        status=REFUSED,
        tier="T3",
        choices=("none", "deepep", "mooncake", "mori", "ascend_fuseep", "flashinfer"),
    )
    deepep_mode: str = flag(
        "auto",
        "Kernels of DeepEP.",
        status=REFUSED,
        tier="T3",
        choices=("auto", "normal", "low_latency"),
    )
    deepep_config: str | None = flag(
        None, "Tuned values of DeepEP, JSON or a file.", status=REFUSED, tier="T3"
    )
    enable_eplb: bool = flag(False, "Balance experts over ranks.", status=REFUSED, tier="T3")
    ep_num_redundant_experts: int = flag(
        0, "Copies of experts beyond one each.", status=REFUSED, tier="T3"
    )
    ep_dispatch_algorithm: str | None = flag(
        None, "Which copy of an expert to use.", status=REFUSED, tier="T3"
    )
    init_expert_location: str = flag("trivial", "Where experts start.", status=REFUSED, tier="T3")
    eplb_algorithm: str = flag("auto", "How to balance.", status=REFUSED, tier="T3")
    eplb_rebalance_num_iterations: int = flag(
        1000, "Steps between balancings.", status=REFUSED, tier="T3"
    )
    eplb_rebalance_layers_per_chunk: int | None = flag(
        None, "Layers moved in one step.", status=REFUSED, tier="T3"
    )
    eplb_min_rebalancing_utilization_threshold: float = flag(
        1.0, "Balance only below this utilization.", status=REFUSED, tier="T3"
    )
    expert_distribution_recorder_mode: str | None = flag(
        None,
        "What to record about routing.",
        status=REFUSED,
        tier="T3",
        choices=("stat", "stat_approx", "per_pass", "per_token"),
    )
    expert_distribution_recorder_buffer_size: int | None = flag(
        None, "Steps recorded at most.", status=REFUSED, tier="T3"
    )
    enable_expert_distribution_metrics: bool = flag(
        False, "Metrics about the balance.", status=REFUSED, tier="T3"
    )
    elastic_ep_backend: str | None = flag(
        None, "Survive the loss of expert ranks.", status=REFUSED, tier="T3"
    )
    mooncake_ib_device: str | None = flag(
        None, "InfiniBand devices of Mooncake.", status=REFUSED, tier="T3"
    )
