"""From outcomes to numbers: the metrics of a run, the printed block and the JSON record."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sglang.bench.backends import Outcome

LABEL_WIDTH = 40
BLOCK_WIDTH = 50

# (label, key) of one line; a line whose key is missing or None is left out.
Line = tuple[str, str]

_VISION = "total_input_vision_tokens"  # shown where there are pictures
_GENERAL: list[Line] = [
    ("Successful requests:", "completed"),
    ("Benchmark duration (s):", "duration"),
    ("Total input tokens:", "total_input_tokens"),
    ("Total input text tokens:", "total_input_text_tokens"),
    ("Total input vision tokens:", _VISION),
    ("Total generated tokens:", "total_output_tokens"),
    ("Total generated tokens (retokenized):", "total_output_tokens_retokenized"),
    ("Request throughput (req/s):", "request_throughput"),
    ("Input token throughput (tok/s):", "input_throughput"),
    ("Output token throughput (tok/s):", "output_throughput"),
    ("Peak output token throughput (tok/s):", "max_output_tokens_per_s"),
    ("Peak concurrent requests:", "max_concurrent_requests"),
    ("Total token throughput (tok/s):", "total_throughput"),
    ("Concurrency:", "concurrency"),
    ("Accept length:", "accept_length"),
]
# title, short name, key, printed statistics
_LATENCIES: list[tuple[str, str, str, tuple[str, ...]]] = [
    ("End-to-End Latency", "E2E Latency", "e2e_latency", ("mean", "median", "p90", "p99")),
    ("Time to First Token", "TTFT", "ttft", ("mean", "median", "p99")),
    ("Time per Output Token (excl. 1st token)", "TPOT", "tpot", ("mean", "median", "p99")),
    ("Inter-Token Latency", "ITL", "itl", ("mean", "median", "p95", "p99", "max")),
]


def compute_metrics(
    outcomes: Sequence[Outcome], duration: float, retokenized_lens: Sequence[int]
) -> dict[str, Any]:
    """The numbers of the JSON record. Failed requests count only in `duration`; times in milliseconds.

    Args:
        duration: seconds from the first request to the last answer.
        retokenized_lens: length of each outcome's text in tokens, in order.
    """
    good = [outcome for outcome in outcomes if outcome.success]
    retokenized = sum(
        n for n, outcome in zip(retokenized_lens, outcomes, strict=True) if outcome.success
    )
    words = sum(outcome.prompt_len for outcome in good)
    pictures = sum(outcome.vision_len for outcome in good)
    inputs = words + pictures
    outputs = sum(outcome.output_len for outcome in good)
    span = max(duration, 1e-9)
    record: dict[str, Any] = {
        "duration": duration,
        "completed": len(good),
        "total_input_tokens": inputs,
        "total_input_text_tokens": words,
        "total_input_vision_tokens": pictures,
        "total_output_tokens": outputs,
        "total_output_tokens_retokenized": retokenized,
        "request_throughput": len(good) / span,
        "input_throughput": inputs / span,
        "output_throughput": outputs / span,
        "total_throughput": (inputs + outputs) / span,
    }
    streamed = [outcome for outcome in good if outcome.itls]
    record |= _statistics("e2e_latency", [o.latency for o in good], (90, 99))
    record |= _statistics("ttft", [o.ttft for o in good], (99,))
    tpots = [(o.latency - o.ttft) / max(o.output_len - 1, 1) for o in streamed]
    record |= _statistics("tpot", tpots, (99,))
    itls = [itl for outcome in streamed for itl in outcome.itls]
    record |= _statistics("itl", itls, (95, 99))
    record["max_itl_ms"] = 1000 * max(itls, default=0.0)
    return record | {
        "concurrency": sum(outcome.latency for outcome in good) / span,
        "max_output_tokens_per_s": peak_tokens_per_second(good),
        "max_concurrent_requests": peak_concurrency(good),
    }


def peak_tokens_per_second(outcomes: Sequence[Outcome]) -> float:
    """Most tokens that arrived within one second of the clock that starts with the first request."""
    if not outcomes:
        return 0.0
    start = min(outcome.started for outcome in outcomes)
    arrivals = [o.started - start + o.ttft + np.cumsum([0.0, *o.itls]) for o in outcomes]
    # What did not come later came with the first token.
    counts = [[o.output_len - len(o.itls), *[1] * len(o.itls)] for o in outcomes]
    seconds = np.concatenate(arrivals).astype(np.int64)
    return float(np.bincount(seconds, np.concatenate(counts)).max())


def peak_concurrency(outcomes: Sequence[Outcome]) -> int:
    """Most requests that were under way at one moment."""
    begins = [(outcome.started, 1) for outcome in outcomes]
    ends = [(outcome.started + outcome.latency, -1) for outcome in outcomes]
    running = peak = 0
    for _, change in sorted(begins + ends):
        running += change
        peak = max(peak, running)
    return peak


def format_block(record: dict[str, Any], title: str = " Serving Benchmark Result ") -> str:
    """The block that is printed at the end of a run."""
    rate, limit = record["request_rate"], record["max_concurrency"]
    lines = [
        "",
        title.center(BLOCK_WIDTH, "="),
        format_line("Backend:", record["backend"]),
        format_line("Traffic request rate:", rate),
        format_line("Max request concurrency:", "not set" if limit is None else limit),
    ]
    lines += [format_line(label, record[key]) for label, key in _GENERAL if _is_shown(record, key)]
    for title, short, key, statistics in _LATENCIES:
        lines.append(title.center(BLOCK_WIDTH, "-"))
        for statistic in statistics:
            name = statistic.upper() if statistic[1].isdigit() else statistic.capitalize()
            lines.append(format_line(f"{name} {short} (ms):", record[f"{statistic}_{key}_ms"]))
    return "\n".join([*lines, "=" * BLOCK_WIDTH])


def format_line(label: str, value: Any) -> str:
    """One line of a block."""
    shown = f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{label:<{LABEL_WIDTH}} {shown:<10}".rstrip()


def details(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What `--output-details` adds: one entry per request."""
    return {
        "input_lens": [outcome.prompt_len for outcome in outcomes],
        "output_lens": [outcome.output_len for outcome in outcomes],
        "ttfts": [outcome.ttft for outcome in outcomes],
        "itls": [outcome.itls for outcome in outcomes],
        "generated_texts": [outcome.text for outcome in outcomes],
        "errors": [outcome.error for outcome in outcomes],
    }


def append_record(path: str | Path, record: dict[str, Any]) -> None:
    """Append one JSON line."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def report_failures(outcomes: Sequence[Outcome]) -> None:
    """Warn about failed requests, with the first reason."""
    failed = [outcome for outcome in outcomes if not outcome.success]
    if failed:
        warnings.warn(
            f"{len(failed)} of {len(outcomes)} requests failed; the first: {failed[0].error}",
            stacklevel=2,
        )


def _statistics(name: str, seconds: list[float], percentiles: tuple[int, ...]) -> dict[str, float]:
    values = np.array(seconds or [0.0]) * 1000.0
    found = {"mean": values.mean(), "median": np.median(values), "std": values.std()}
    found |= {f"p{rank}": np.percentile(values, rank) for rank in percentiles}
    return {f"{statistic}_{name}_ms": float(value) for statistic, value in found.items()}


def _is_shown(record: dict[str, Any], key: str) -> bool:
    return record.get(key) is not None and (key != _VISION or record[key] > 0)
