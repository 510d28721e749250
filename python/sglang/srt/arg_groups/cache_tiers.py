"""Flags of the KV cache beyond one device: host and storage tiers, and the split of prefill, decode and encoder."""

from __future__ import annotations

import dataclasses

from sglang.srt.arg_groups.fields import ACCEPTED, IGNORED, REFUSED, flag


@dataclasses.dataclass(kw_only=True)
class HierarchicalCacheArgs:
    """Hierarchical cache."""

    enable_hierarchical_cache: bool = flag(
        False, "Keep evicted prefixes in host memory.", status=REFUSED, tier="T3"
    )
    hicache_ratio: float = flag(
        2.0, "Host pool to device pool.", status=REFUSED, tier="T3", minimum=0.0
    )
    hicache_size: int = flag(
        0, "Host pool in GB, over the ratio.", status=REFUSED, tier="T3", minimum=0
    )
    hicache_write_policy: str = flag(
        "write_through",
        "When prefixes are copied.",
        status=REFUSED,
        tier="T3",
        choices=("write_back", "write_through", "write_through_selective"),
    )
    hicache_io_backend: str = flag(
        "kernel",
        "How prefixes are copied.",
        status=REFUSED,
        tier="T3",
        choices=("direct", "kernel", "kernel_ascend"),
    )
    hicache_mem_layout: str = flag(
        "layer_first", "Layout of the host pool.", status=REFUSED, tier="T3"
    )
    hicache_storage_backend: str | None = flag(
        None,
        "Third tier.",
        status=REFUSED,
        tier="T3",
        choices=("file", "mooncake", "hf3fs", "nixl", "aibrix", "eic", "dynamic"),
    )
    hicache_storage_prefetch_policy: str = flag(
        "best_effort",
        "When to stop fetching from storage.",
        status=REFUSED,
        tier="T3",
        choices=("best_effort", "wait_complete", "timeout"),
    )
    hicache_storage_backend_extra_config: str | None = flag(
        None, "Options of the storage, JSON.", status=REFUSED, tier="T3"
    )
    disable_hicache_numa_detect: bool = flag(
        False, "Do not bind the host pool to a NUMA node.", status=ACCEPTED, tier="T3"
    )
    enable_lmcache: bool = flag(False, "Use LMCache as the lower tier.", status=REFUSED, tier="T3")
    hierarchical_sparse_attention_extra_config: str | None = flag(
        None, "Options of hierarchical sparse attention.", status=IGNORED, tier="T4"
    )


@dataclasses.dataclass(kw_only=True)
class DisaggregationArgs:
    """Prefill, decode and encoder apart."""

    disaggregation_mode: str = flag(
        "null",
        "The part that this server plays; null: all of them.",
        status=REFUSED,
        tier="T3",
        choices=("null", "prefill", "decode"),
    )
    disaggregation_transfer_backend: str = flag(
        "mooncake",
        "How KV is handed over.",
        status=REFUSED,
        tier="T3",
        choices=("mooncake", "nixl", "ascend", "fake", "mori"),
    )
    disaggregation_bootstrap_port: int = flag(
        8998, "Port where the two sides meet.", status=REFUSED, tier="T3"
    )
    disaggregation_decode_tp: int | None = flag(
        None, "Tensor parallel ranks of the decode side.", status=REFUSED, tier="T3"
    )
    disaggregation_decode_dp: int | None = flag(
        None, "Replicas of the decode side.", status=REFUSED, tier="T3"
    )
    disaggregation_prefill_pp: int = flag(
        1, "Pipeline stages of the prefill side.", status=REFUSED, tier="T3"
    )
    disaggregation_ib_device: str | None = flag(
        None, "InfiniBand devices.", status=REFUSED, tier="T3"
    )
    disaggregation_decode_enable_offload_kvcache: bool = flag(
        False, "Offload KV on the decode side.", status=REFUSED, tier="T3"
    )
    disaggregation_decode_polling_interval: int = flag(
        1, "Steps between looks for handed-over KV.", status=REFUSED, tier="T3"
    )
    num_reserved_decode_tokens: int = flag(
        512, "Tokens reserved per request that arrives.", status=REFUSED, tier="T3"
    )
    enable_pdmux: bool = flag(
        False, "Prefill and decode on one GPU at once.", status=REFUSED, tier="T3"
    )
    pdmux_config_path: str | None = flag(None, "Split of that GPU.", status=REFUSED, tier="T3")
    sm_group_num: int = flag(8, "Groups of SMs.", status=REFUSED, tier="T3")
    encoder_only: bool = flag(False, "Run only the encoder.", status=REFUSED, tier="T3")
    language_only: bool = flag(False, "Run only the language model.", status=REFUSED, tier="T3")
    encoder_urls: list[str] = flag([], "Servers with the encoder.", status=REFUSED, tier="T3")
    encoder_transfer_backend: str = flag(
        "zmq_to_scheduler", "How embeddings are handed over.", status=REFUSED, tier="T3"
    )
