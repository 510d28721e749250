"""What the card does at best, on random data: copy, a one-row product, and a large bfloat16 product in a burst and sustained."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import torch


def seconds_per_call(call: Callable[[int], object], count: int, rounds: int) -> list[float]:
    for index in range(3):
        call(index)
    found = []
    for _ in range(rounds):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for index in range(count):
            call(index)
        last.record()
        torch.cuda.synchronize()
        found.append(first.elapsed_time(last) / count / 1e3)
    return found


def measure() -> dict[str, float]:
    source = torch.randint(0, 255, (4 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = statistics.median(seconds_per_call(lambda _: target.copy_(source), 10, 5))
    found = {"copy_TBps": 2 * source.numel() / copy / 1e12}
    weights = [torch.randn(28672, 4096, device="cuda", dtype=torch.bfloat16) for _ in range(8)]
    row = torch.randn(1, 4096, device="cuda", dtype=torch.bfloat16)
    times = seconds_per_call(lambda i: torch.nn.functional.linear(row, weights[i % 8]), 64, 5)
    found["one_row_TBps"] = 2 * weights[0].numel() / statistics.median(times) / 1e12
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    torch.cuda.synchronize()
    time.sleep(2)  # the burst starts from a cool card
    found["burst_TFLOPs"] = 2 * 8192**3 / seconds_per_call(lambda _: a @ b, 10, 1)[0] / 1e12
    times = seconds_per_call(lambda _: a @ b, 50, 20)
    found["sustained_TFLOPs"] = 2 * 8192**3 / statistics.median(times) / 1e12
    return found


if __name__ == "__main__":
    print("CEILINGS " + json.dumps({key: round(value, 3) for key, value in measure().items()}))
