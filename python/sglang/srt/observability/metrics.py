"""Prometheus metrics of one server, kept by the front process.

Request metrics are counted as results arrive; the scheduler's gauges are asked for when somebody scrapes, so the scheduler's loop never
touches a metrics library and no files are shared between processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PREFIX = "sglang:"

FIRST_TOKEN_BUCKETS = (
    0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400,
)  # fmt: skip
INTER_TOKEN_BUCKETS = (
    0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.06, 0.08, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 8,
)  # fmt: skip
E2E_BUCKETS = (
    0.1,
    0.2,
    0.4,
    0.6,
    0.8,
    1,
    2,
    4,
    6,
    8,
    10,
    20,
    40,
    60,
    80,
    100,
    200,
    400,
    600,
    1200,
    2400,
)
QUEUE_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)

# Entry of the scheduler's internal state -> help; the metric has the same name unless listed below.
_GAUGES = {
    "num_running_reqs": "Requests that are running.",
    "num_queue_reqs": "Requests that wait.",
    "num_grammar_queue_reqs": "Requests whose grammar is being compiled.",
    "num_used_tokens": "Tokens in the KV cache.",
    "token_usage": "Share of the KV cache held by running requests.",
    "last_gen_throughput": "Generated tokens per second, over the last log interval.",
    "cache_hit_rate": "Share of prompt tokens taken from the prefix cache.",
    "max_total_num_tokens": "Size of the KV cache in tokens.",
    "utilization": "Share of the running slots in use.",
    "num_retracted_reqs": "Requests that lost their KV cache and were recomputed.",
    "num_paused_reqs": "Requests that are paused.",
}
_GAUGE_NAMES = {"last_gen_throughput": "gen_throughput"}


class FrontMetrics:
    """All metrics, in a registry of their own so that several engines may live in one process.

    Args:
        model_name: value of the label; the other labels are those of a single engine.
        first_token_buckets, inter_token_buckets, e2e_buckets: histogram bounds in seconds; None takes the built-in ones.
    """

    def __init__(
        self,
        model_name: str,
        first_token_buckets: Sequence[float] | None = None,
        inter_token_buckets: Sequence[float] | None = None,
        e2e_buckets: Sequence[float] | None = None,
    ) -> None:
        import prometheus_client  # only servers with --enable-metrics need it

        self._prometheus = prometheus_client
        self._registry = prometheus_client.CollectorRegistry()
        self._labels = {
            "model_name": model_name,
            "engine_type": "unified",
            "tp_rank": "0",
            "pp_rank": "0",
            "dp_rank": "0",
        }
        self._prompt_tokens = self._counter("prompt_tokens_total", "Prompt tokens.")
        self._generation_tokens = self._counter("generation_tokens_total", "Generated tokens.")
        self._cached_tokens = self._counter(
            "cached_tokens_total", "Prompt tokens from the prefix cache."
        )
        self._requests = self._counter("num_requests_total", "Finished requests.")
        self._aborted = self._counter("num_aborted_requests_total", "Requests that were aborted.")
        self._first_token = self._histogram(
            "time_to_first_token_seconds", first_token_buckets or FIRST_TOKEN_BUCKETS
        )
        self._inter_token = self._histogram(
            "inter_token_latency_seconds", inter_token_buckets or INTER_TOKEN_BUCKETS
        )
        self._e2e = self._histogram("e2e_request_latency_seconds", e2e_buckets or E2E_BUCKETS)
        self._queue_time = self._histogram("queue_time_seconds", QUEUE_BUCKETS)
        self._gauges = {
            key: self._gauge(_GAUGE_NAMES.get(key, key), help_) for key, help_ in _GAUGES.items()
        }

    @classmethod
    def from_server_args(cls, server_args: Any) -> FrontMetrics | None:
        """None when metrics are off."""
        if not server_args.enable_metrics:
            return None
        return cls(
            server_args.served_model_name or server_args.model_path,
            server_args.bucket_time_to_first_token,
            server_args.bucket_inter_token_latency,
            server_args.bucket_e2e_request_latency,
        )

    @property
    def content_type(self) -> str:
        return self._prometheus.CONTENT_TYPE_LATEST

    def observe_first_token(self, seconds: float) -> None:
        self._first_token.observe(seconds)

    def observe_inter_token(self, seconds: float) -> None:
        self._inter_token.observe(seconds)

    def count_tokens(self, num_tokens: int) -> None:
        self._generation_tokens.inc(num_tokens)

    def observe_finished(
        self,
        *,
        prompt_tokens: int,
        cached_tokens: int,
        e2e_seconds: float,
        queue_seconds: float,
        is_abort: bool,
    ) -> None:
        """One sample has ended."""
        self._requests.inc()
        self._prompt_tokens.inc(prompt_tokens)
        self._cached_tokens.inc(cached_tokens)
        if is_abort:
            self._aborted.inc()
            return
        self._e2e.observe(e2e_seconds)
        self._queue_time.observe(queue_seconds)

    def update_scheduler(self, state: Mapping[str, Any]) -> None:
        """Set the gauges from an internal state; entries it lacks keep their value."""
        for key, gauge in self._gauges.items():
            if key in state:
                gauge.set(state[key])

    def render(self) -> bytes:
        """The exposition text."""
        return self._prometheus.generate_latest(self._registry)

    def _counter(self, name: str, help_: str) -> Any:
        return self._labelled(self._prometheus.Counter, name, help_)

    def _gauge(self, name: str, help_: str) -> Any:
        return self._labelled(self._prometheus.Gauge, name, help_)

    def _histogram(self, name: str, buckets: Sequence[float]) -> Any:
        help_ = name.replace("_", " ").capitalize() + "."
        return self._labelled(self._prometheus.Histogram, name, help_, buckets=tuple(buckets))

    def _labelled(self, kind: type, name: str, help_: str, **options: Any) -> Any:
        metric = kind(
            PREFIX + name, help_, labelnames=list(self._labels), registry=self._registry, **options
        )
        return metric.labels(**self._labels)
