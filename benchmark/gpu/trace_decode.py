"""Where the time of a decode step goes: device kernels by name, gaps between steps, and what the host took.

    python benchmark/gpu/trace_decode.py --shape qwen3-0.6b --batch-size 1 64

Runs the worker without a scheduler, one step ahead as the engine does.
"""

from __future__ import annotations

import argparse
import collections
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from shapes import CONFIGS, count_work, write_shape

STEPS = 30


def make_bench(shape: str, disable_cuda_graph: bool) -> Any:
    from sglang.bench_one_batch import Bench
    from sglang.srt.server_args import ServerArgs

    folder = write_shape(shape, Path(tempfile.gettempdir()) / "sglang-shapes")
    return Bench(
        ServerArgs(
            model_path=str(folder),
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype="bfloat16",
            context_length=9216,
            device="cuda",
            random_seed=0,
            disable_cuda_graph=disable_cuda_graph,
        )
    )


def step_time(batch: Any, count: int) -> tuple[float, float]:
    """(seconds of a step, seconds that launching it took), one step in flight while the next is launched."""
    launching = 0.0
    ahead = batch.decode()
    ahead.result()
    started = time.perf_counter()
    for _ in range(count):
        at = time.perf_counter()
        step = batch.decode()
        launching += time.perf_counter() - at
        ahead.result()
        ahead = step
    ahead.result()
    return (time.perf_counter() - started) / count, launching / count


def trace(batch: Any) -> None:
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step_time(batch, STEPS)
        torch.cuda.synchronize()
    spans = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    by_name: dict[str, list[float]] = collections.defaultdict(list)
    for start, end, name in spans:
        by_name[name].append(end - start)
    steps, busy = STEPS + 1, sum(end - start for start, end, _ in spans)
    gaps = [b[0] - a[1] for a, b in zip(spans, spans[1:], strict=False) if b[0] > a[1]]
    print(
        f"  device busy {busy / steps:.0f} us a step of {(spans[-1][1] - spans[0][0]) / steps:.0f}; "
        f"{len(spans) / steps:.0f} kernels; gaps above 5 us: "
        f"{sum(gap for gap in gaps if gap > 5) / steps:.0f} us, largest {max(gaps):.0f} us"
    )
    for name, times in sorted(by_name.items(), key=lambda item: -sum(item[1]))[:14]:
        print(
            f"  {sum(times) / steps:8.1f} us {len(times) / steps:6.1f} x {sum(times) / len(times):7.2f}  {name[:90]}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=sorted(CONFIGS), default="qwen3-0.6b")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--input-len", type=int, default=0, help="0: 128 for one, else 1024")
    parser.add_argument("--disable-cuda-graph", action="store_true")
    options = parser.parse_args()
    bench = make_bench(options.shape, options.disable_cuda_graph)
    for size in options.batch_size:
        length = options.input_len or (128 if size == 1 else 1024)
        batch = bench.batch(size, length + 512)
        rows = torch.randint(0, 10000, (size, length)).tolist()
        batch.extend(rows).result()
        step_time(batch, 8)
        spent, launching = step_time(batch, 100)
        floor = count_work(options.shape).decode_bytes(size, length + 60)
        print(
            f"{options.shape} batch {size}, context {length}: {spent * 1e3:.3f} ms a step, launching it "
            f"{launching * 1e3:.3f} ms; {floor / spent / 1e12:.2f} TB/s of necessary reads"
        )
        trace(batch)


if __name__ == "__main__":
    main()
