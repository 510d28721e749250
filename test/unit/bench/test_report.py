"""Metrics of made-up outcomes, worked out by hand."""

from __future__ import annotations

import pytest

from sglang.bench.backends import Outcome
from sglang.bench.report import (
    compute_metrics,
    details,
    format_block,
    peak_concurrency,
    peak_tokens_per_second,
    report_failures,
)


def outcome(started: float, latency: float, ttft: float, itls: list[float], **values) -> Outcome:
    values.setdefault("output_len", 1 + len(itls))
    return Outcome(prompt_len=10, started=started, latency=latency, ttft=ttft, itls=itls, **values)


GOOD = [
    outcome(100.0, 1.0, 0.4, [0.1, 0.2, 0.3]),
    outcome(100.5, 1.5, 0.5, [0.5, 0.5]),
]
FAILED = outcome(100.0, 9.0, 0.0, [], error="boom", output_len=0)


def test_totals_and_rates_leave_failures_out():
    record = compute_metrics([*GOOD, FAILED], 2.0, [4, 2, 99])
    expected = {
        "completed": 2,
        "total_input_tokens": 20,
        "total_output_tokens": 7,
        "total_output_tokens_retokenized": 6,
        "request_throughput": 1.0,
        "input_throughput": 10.0,
        "output_throughput": 3.5,
        "total_throughput": 13.5,
        "concurrency": 1.25,
        "max_concurrent_requests": 2,
    }
    assert {key: record[key] for key in expected} == expected


def test_latencies_in_milliseconds():
    record = compute_metrics(GOOD, 2.0, [4, 3])
    assert record["mean_e2e_latency_ms"] == pytest.approx(1250)
    assert record["p90_e2e_latency_ms"] == pytest.approx(1450)
    assert record["median_ttft_ms"] == pytest.approx(450)
    assert record["std_ttft_ms"] == pytest.approx(50)
    # (1.0 - 0.4) / 3 and (1.5 - 0.5) / 2
    assert record["mean_tpot_ms"] == pytest.approx(350)
    assert record["mean_itl_ms"] == pytest.approx(320)
    assert record["median_itl_ms"] == pytest.approx(300)
    assert record["max_itl_ms"] == pytest.approx(500)
    assert record["p95_itl_ms"] == pytest.approx(500)


def test_nothing_succeeded():
    record = compute_metrics([FAILED], 2.0, [0])
    assert record["completed"] == 0 and record["p99_itl_ms"] == 0.0
    assert record["max_output_tokens_per_s"] == 0.0


def test_peak_tokens_per_second():
    # Arrivals after the start: 0.4 0.5 0.7 1.0 and 1.0 1.5 2.0
    assert peak_tokens_per_second(GOOD) == 3.0
    whole = outcome(100.0, 1.0, 1.0, [], output_len=50)  # not streamed: all at the end
    assert peak_tokens_per_second([whole]) == 50.0


def test_peak_concurrency_counts_moments():
    back_to_back = [outcome(0.0, 1.0, 1.0, []), outcome(1.0, 1.0, 1.0, [])]
    assert peak_concurrency(back_to_back) == 1
    assert peak_concurrency([*back_to_back, outcome(0.5, 1.0, 1.0, [])]) == 2


def test_tokens_that_come_together_share_the_gap():
    timed = Outcome(prompt_len=1, started=10.0)
    timed.tokens_arrived(2, 10.5)
    timed.tokens_arrived(4, 11.5)
    timed.tokens_arrived(0, 12.0)
    timed.tokens_arrived(1, 12.5)
    assert (timed.ttft, timed.output_len, timed.itls) == (0.5, 7, [0.25] * 4 + [1.0])


def test_block():
    record = {"backend": "sglang", "request_rate": "inf", "max_concurrency": None}
    record |= compute_metrics(GOOD, 2.0, [4, 3])
    lines = format_block({**record, "accept_length": None}).splitlines()
    assert lines[1] == "============ Serving Benchmark Result ============"
    assert "Max request concurrency:                 not set" in lines
    assert "Output token throughput (tok/s):         3.50" in lines
    assert "P90 E2E Latency (ms):                    1450.00" in lines
    assert "Max ITL (ms):                            500.00" in lines
    assert not any("Accept length" in line for line in lines)
    assert "Accept length:                           2.50" in format_block(
        {**record, "accept_length": 2.5}
    )


def test_details_keep_the_order():
    found = details([*GOOD, FAILED])
    assert found["output_lens"] == [4, 3, 0] and found["errors"] == ["", "", "boom"]
    assert found["itls"][1] == [0.5, 0.5] and found["input_lens"] == [10, 10, 10]


def test_failures_are_reported_with_the_reason():
    with pytest.warns(UserWarning, match="1 of 3 requests failed; the first: boom"):
        report_failures([*GOOD, FAILED])
