"""What a prefill step costs on the host and on the device, without a scheduler.

python benchmark/gpu/trace_prefill.py --shape qwen3-0.6b --input-len 128 1024 8192
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from typing import Any

import torch
from shapes import CONFIGS
from trace_decode import make_bench

REPEAT = 10


def run(bench: Any, length: int) -> tuple[float, float]:
    """(seconds until launched, seconds until the result is there) of one prompt."""
    batch = bench.batch(1, length)
    ids = [torch.randint(0, 10000, (length,)).tolist()]
    torch.cuda.synchronize()
    started = time.perf_counter()
    step = batch.extend(ids)
    launched = time.perf_counter()
    step.result()
    return launched - started, time.perf_counter() - started


def device_time(bench: Any, length: int) -> float:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run(bench, length)
        torch.cuda.synchronize()
    times: dict[str, float] = {}
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            times[event.name] = times.get(event.name, 0.0) + event.device_time
    for name, spent in sorted(times.items(), key=lambda item: -item[1])[:8]:
        print(f"    {spent:9.0f} us  {name[:90]}")
    return sum(times.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=sorted(CONFIGS), default="qwen3-0.6b")
    parser.add_argument("--input-len", type=int, nargs="+", default=[128, 1024, 8192])
    parser.add_argument("--profile", action="store_true", help="list the host's functions too")
    parser.add_argument("--disable-cuda-graph", action="store_true")
    options = parser.parse_args()
    bench = make_bench(options.shape, options.disable_cuda_graph)
    for length in options.input_len:
        for _ in range(3):
            run(bench, length)
        found = sorted(run(bench, length) for _ in range(REPEAT))[REPEAT // 2]
        print(
            f"{options.shape} prompt of {length}: launched after {found[0] * 1e3:.2f} ms, done after "
            f"{found[1] * 1e3:.2f} ms"
        )
        print(f"  device busy {device_time(bench, length) / 1e3:.2f} ms")
    if options.profile:
        profile = cProfile.Profile()
        profile.enable()
        for _ in range(REPEAT):
            run(bench, options.input_len[0])
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(28)


if __name__ == "__main__":
    main()
