"""Flags of logs, metrics and traces."""

from __future__ import annotations

import dataclasses

from sglang.srt.arg_groups.fields import REFUSED, flag


@dataclasses.dataclass(kw_only=True)
class ObservabilityArgs:
    """Logs, metrics and traces."""

    log_level: str = flag("info", "Level of the log.")
    log_level_http: str | None = flag(None, "Level of the HTTP server's log; unset: the same.")
    log_requests: bool = flag(False, "Log every request.")
    log_requests_level: int = flag(
        2,
        "0 metadata, 1 also sampling parameters, 2 also the start of input and output, 3 everything.",
        choices=(0, 1, 2, 3),
    )
    log_requests_format: str = flag(
        "text", "Format of logged requests.", tier="T2", choices=("text", "json")
    )
    log_requests_target: list[str] | None = flag(
        None, "stdout and/or folders; unset: the log.", tier="T2"
    )
    uvicorn_access_log_exclude_prefixes: list[str] = flag(
        [], "Paths that the access log leaves out.", tier="T2"
    )
    decode_log_interval: int = flag(40, "Decode steps between log lines.", minimum=1)
    enable_metrics: bool = flag(False, "Serve Prometheus metrics on /metrics.")
    bucket_time_to_first_token: list[float] | None = flag(
        None, "Histogram bounds in seconds.", tier="T2"
    )
    bucket_inter_token_latency: list[float] | None = flag(
        None, "Histogram bounds in seconds.", tier="T2"
    )
    bucket_e2e_request_latency: list[float] | None = flag(
        None, "Histogram bounds in seconds.", tier="T2"
    )
    collect_tokens_histogram: bool = flag(
        False, "Histograms of prompt and output lengths.", status=REFUSED, tier="T3"
    )
    prompt_tokens_buckets: list[str] | None = flag(
        None, "Bounds of the prompt length histogram.", status=REFUSED, tier="T3"
    )
    generation_tokens_buckets: list[str] | None = flag(
        None, "Bounds of the output length histogram.", status=REFUSED, tier="T3"
    )
    enable_metrics_for_all_schedulers: bool = flag(
        False, "Metrics of every rank.", status=REFUSED, tier="T3"
    )
    extra_metric_labels: dict | None = flag(
        None, "Labels added to every metric, a JSON object.", status=REFUSED, tier="T3"
    )
    tokenizer_metrics_custom_labels_header: str = flag(
        "x-custom-labels", "Header with a request's labels.", status=REFUSED, tier="T3"
    )
    tokenizer_metrics_allowed_custom_labels: list[str] | None = flag(
        None, "Labels that requests may set.", status=REFUSED, tier="T3"
    )
    show_time_cost: bool = flag(False, "Log the time of some internal steps.", tier="T2")
    enable_request_time_stats_logging: bool = flag(
        False, "Log where each request spent its time.", tier="T2"
    )
    crash_dump_folder: str | None = flag(
        None, "Write the last requests here on a crash.", status=REFUSED, tier="T3"
    )
    gc_warning_threshold_secs: float = flag(
        0.0, "Warn of longer garbage collections; 0: never.", status=REFUSED, tier="T3"
    )
    kv_events_config: str | None = flag(
        None, "Publish changes of the KV cache, JSON.", status=REFUSED, tier="T3", is_json=True
    )
    enable_trace: bool = flag(False, "Send OpenTelemetry traces.", status=REFUSED, tier="T3")
    otlp_traces_endpoint: str = flag(
        "localhost:4317", "Collector of the traces.", status=REFUSED, tier="T3"
    )
    export_metrics_to_file: bool = flag(
        False, "Write a line of metrics per request.", status=REFUSED, tier="T3"
    )
    export_metrics_to_file_dir: str | None = flag(
        None, "Folder of those lines.", status=REFUSED, tier="T3"
    )
