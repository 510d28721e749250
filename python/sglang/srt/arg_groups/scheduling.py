"""Flags of memory, batching and the prefix cache."""

from __future__ import annotations

import dataclasses

from sglang.srt.arg_groups.fields import ACCEPTED, IGNORED, REFUSED, flag


@dataclasses.dataclass(kw_only=True)
class SchedulingArgs:
    """Memory and scheduling."""

    mem_fraction_static: float | None = flag(
        None,
        "Share of device memory for weights and KV cache; unset: computed from memory and batch sizes, on a GPU less for a model that takes media.",
        minimum=0.01,
        maximum=1.0,
    )
    max_running_requests: int | None = flag(
        None, "Requests that run at once; unset: computed.", minimum=1
    )
    max_queued_requests: int | None = flag(
        None, "Requests that may wait; more are answered with 503. Unset: no limit.", minimum=0
    )
    max_total_tokens: int | None = flag(
        None, "Size of the KV cache in tokens; unset: computed.", minimum=1
    )
    chunked_prefill_size: int | None = flag(
        None,
        "Prompt tokens per prefill chunk, a multiple of the page size; -1: whole prompts; "
        "unset: by device memory.",
        minimum=-1,
    )
    prefill_max_requests: int | None = flag(
        None, "Requests in one prefill batch; unset: no limit.", tier="T2", minimum=1
    )
    max_prefill_tokens: int = flag(16384, "Prompt tokens in one prefill batch.", minimum=1)
    enable_dynamic_chunking: bool = flag(
        False, "Vary the chunk size in a pipeline.", status=REFUSED, tier="T3"
    )
    schedule_policy: str = flag(
        "fcfs",
        "Order of the queue: fcfs by arrival, lpm by longest cached prefix.",
        choices=("fcfs", "lpm", "random", "dfs-weight", "lof", "priority", "routing-key"),
        supports=("fcfs", "lpm"),
    )
    enable_priority_scheduling: bool = flag(
        False, "Serve requests by their priority.", status=REFUSED, tier="T2"
    )
    schedule_low_priority_values_first: bool = flag(
        False, "A low value means urgent.", status=REFUSED, tier="T2"
    )
    priority_scheduling_preemption_threshold: int = flag(
        10, "Difference of priority that preempts.", status=REFUSED, tier="T2"
    )
    abort_on_priority_when_disabled: bool = flag(
        False, "Refuse requests with a priority when priorities are off.", status=REFUSED, tier="T2"
    )
    schedule_conservativeness: float = flag(
        1.0, "Scales the tokens reserved for running requests.", minimum=0.0
    )
    page_size: int = flag(1, "Tokens per page of the KV cache.", minimum=1)
    radix_eviction_policy: str = flag(
        "lru", "What the prefix cache gives up first.", tier="T2", choices=("lru", "lfu")
    )
    disable_radix_cache: bool = flag(False, "Keep no prefix cache.")
    swa_full_tokens_ratio: float = flag(
        0.8,
        "Sliding-window tokens per full-attention token in hybrid pools.",
        status=ACCEPTED,
        tier="T2",
        minimum=0.01,
        maximum=1.0,
    )
    disable_hybrid_swa_memory: bool = flag(
        False, "One pool for sliding-window and full attention.", status=ACCEPTED, tier="T2"
    )
    enable_mixed_chunk: bool = flag(False, "Run prefill chunks and decode in one batch.", tier="T2")
    disable_overlap_schedule: bool = flag(
        False, "Wait for a step's result before planning the next."
    )
    num_continuous_decode_steps: int = flag(
        1, "Decode steps between looks at the queue.", status=REFUSED, tier="T2", minimum=1
    )
    stream_interval: int = flag(1, "Tokens per stream event.", minimum=1)
    stream_output: bool = flag(False, "Stream only the new output ids.", tier="T2")
    scheduler_recv_interval: int = flag(
        1, "Steps between looks at the socket.", status=REFUSED, tier="T3", minimum=1
    )
    enable_prefill_delayer: bool = flag(
        False, "Delay prefill until all ranks have some.", status=REFUSED, tier="T3"
    )
    prefill_delayer_max_delay_passes: int = flag(
        30, "Longest delay in steps.", status=REFUSED, tier="T3"
    )
    prefill_delayer_token_usage_low_watermark: float | None = flag(
        None, "No delay below this use of the KV cache.", status=REFUSED, tier="T3"
    )
    prefill_delayer_forward_passes_buckets: list[float] | None = flag(
        None, "Histogram bounds of the delay in steps.", status=REFUSED, tier="T3"
    )
    prefill_delayer_wait_seconds_buckets: list[float] | None = flag(
        None, "Histogram bounds of the delay in seconds.", status=REFUSED, tier="T3"
    )
    enable_tokenizer_batch_encode: bool = flag(
        False, "Tokenize the prompts of a batch together.", status=REFUSED, tier="T2"
    )
    disable_tokenizer_batch_decode: bool = flag(
        False, "Decode the outputs of a batch one by one.", status=REFUSED, tier="T2"
    )
    enable_dynamic_batch_tokenizer: bool = flag(
        False, "Gather requests and tokenize them together.", status=REFUSED, tier="T3"
    )
    dynamic_batch_tokenizer_batch_size: int = flag(
        32, "Requests gathered at most.", status=REFUSED, tier="T3"
    )
    dynamic_batch_tokenizer_batch_timeout: float = flag(
        0.002, "Seconds to gather.", status=REFUSED, tier="T3"
    )
    random_seed: int | None = flag(None, "Seed of sampling; unset: random.", minimum=0)
    watchdog_timeout: float = flag(
        300.0,
        "Seconds after which a step or process that hangs ends the server; 0: never.",
        tier="T2",
        minimum=0.0,
    )
    soft_watchdog_timeout: float | None = flag(
        None, "Seconds after which a hanging step is reported.", status=REFUSED, tier="T3"
    )
    sleep_on_idle: bool = flag(False, "Use no CPU time while idle.", tier="T2")
    delete_ckpt_after_loading: bool = flag(
        False, "Delete the checkpoint once loaded.", status=REFUSED, tier="T3"
    )
    cpu_offload_gb: int = flag(0, "GiB of weights kept in host memory.", status=REFUSED, tier="T2")
    offload_group_size: int = flag(-1, "Layers per offload group.", status=REFUSED, tier="T3")
    offload_num_in_group: int = flag(1, "Offloaded layers in a group.", status=REFUSED, tier="T3")
    offload_prefetch_step: int = flag(1, "Layers to fetch ahead.", status=REFUSED, tier="T3")
    offload_mode: str = flag("cpu", "Where offloaded layers live.", status=REFUSED, tier="T3")
    enable_memory_saver: bool = flag(
        False, "Let memory be released and resumed.", status=REFUSED, tier="T3"
    )
    enable_weights_cpu_backup: bool = flag(
        False, "Keep released weights in host memory.", status=REFUSED, tier="T3"
    )
    enable_draft_weights_cpu_backup: bool = flag(
        False, "The same for the draft model.", status=REFUSED, tier="T3"
    )
    multi_item_scoring_delimiter: int | None = flag(
        None, "Token id between the items of one scoring prompt.", status=REFUSED, tier="T3"
    )
    hybrid_kvcache_ratio: float | None = flag(
        None, "Deprecated, without effect.", status=IGNORED, tier="T4"
    )
    prefill_round_robin_balance: bool = flag(
        False, "Deprecated, without effect.", status=IGNORED, tier="T4"
    )
