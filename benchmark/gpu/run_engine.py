"""Measure one engine with one shape on dummy weights: whatever package `sglang` is first on PYTHONPATH.

    python benchmark/gpu/run_engine.py --label ours --shape qwen3-0.6b --work decode1,decode64

Prompts are drawn anew for every call, so that a prefix cache cannot help. A line of JSON per repetition starts with `R`, the summary with
`S`. The rows are those of `README.md`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shapes import CONFIGS, count_work, write_shape

CONTEXT = 9216
WORDS = 10000


class Measurement:
    """An engine, and the rows measured on it."""

    def __init__(self, options: argparse.Namespace) -> None:
        import sglang

        self.options = options
        self.draw = random.Random(1)
        self.rows: list[dict[str, Any]] = []
        folder = write_shape(options.shape, Path(tempfile.gettempdir()) / "sglang-shapes")
        started = time.perf_counter()
        self.engine = sglang.Engine(
            model_path=str(folder),
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype="bfloat16",
            context_length=CONTEXT,
            random_seed=0,
            log_level="info",
            **json.loads(options.engine_args),
        )
        self.add("start", start_s=time.perf_counter() - started, version=sglang.__version__)

    def add(self, work: str, **values: Any) -> None:
        row = {"label": self.options.label, "shape": self.options.shape, "work": work, **values}
        self.rows.append(row)
        print("R " + json.dumps(row), flush=True)

    def run(self, lengths: list[int], outputs: list[int], temperature: float = 0.0) -> float:
        """Seconds for these requests, all sent at once."""
        prompts = [[self.draw.randrange(WORDS) for _ in range(n)] for n in lengths]
        params = [
            {"temperature": temperature, "ignore_eos": True, "max_new_tokens": n} for n in outputs
        ]
        started = time.perf_counter()
        answers = self.engine.generate(input_ids=prompts, sampling_params=params)
        seconds = time.perf_counter() - started
        found = [len(answer["output_ids"]) for answer in answers]
        if found != outputs:
            raise SystemExit(f"{sum(found)} tokens came back, {sum(outputs)} were asked for")
        return seconds

    # --- rows

    def decode1(self) -> None:
        self._decode("decode1", 1, 128, 256, 3)

    def decode64(self) -> None:
        self._decode("decode64", 64, 1024, 256, 2)

    def prefill8k(self) -> None:
        self._prefill("prefill8k", 8192, 8)

    def ttft1k(self) -> None:
        self._prefill("ttft1k", 1024, 20)

    def mini(self) -> None:
        lengths, outputs = mini_lengths()
        self.run(lengths[:64], [32] * 64, 0.6)
        for _ in range(2):
            seconds = self.run(lengths, outputs, 0.6)
            self.add("mini", out_tok_s=sum(outputs) / seconds, wall_s=seconds)

    def _decode(self, name: str, size: int, length: int, count: int, repeat: int) -> None:
        """A step is (time for count + 1 tokens - time for one) / count."""
        self.run([length] * size, [9] * size)
        self.run([length] * size, [1] * size)
        for _ in range(repeat):
            first = self.run([length] * size, [1] * size)
            whole = self.run([length] * size, [count + 1] * size)
            step = (whole - first) / count
            floor = count_work(self.options.shape).decode_bytes(size, length + count // 2)
            self.add(
                name, step_ms=step * 1e3, first_s=first, tok_s=size / step, TBps=floor / step / 1e12
            )

    def _prefill(self, name: str, length: int, repeat: int) -> None:
        for _ in range(3):
            self.run([length], [1])
        times = sorted(self.run([length], [1]) for _ in range(repeat))
        middle = statistics.median(times)
        flops = count_work(self.options.shape).prefill_flops(length)
        self.add(
            name,
            median_ms=middle * 1e3,
            min_ms=times[0] * 1e3,
            max_ms=times[-1] * 1e3,
            TFLOPs=flops / middle / 1e12,
        )


def mini_lengths() -> tuple[list[int], list[int]]:
    """256 prompts and answers of 100 to 1024 tokens. The ids of a prompt are drawn between the lengths, as in the workload's original."""
    draw = random.Random(0)
    lengths = []
    for _ in range(256):
        lengths.append(draw.randint(100, 1024))
        for _ in range(lengths[-1]):
            draw.randint(0, WORDS)
    return lengths, [draw.randint(100, 1024) for _ in range(256)]


def print_summary(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        values = {
            key: round(value, 4) if isinstance(value, float) else value
            for key, value in row.items()
            if key not in ("label", "shape", "work")
        }
        print(
            f"S {row['label']:14} {row['shape']:13} {row['work']:10} {json.dumps(values)}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--label", default="ours")
    parser.add_argument("--shape", choices=sorted(CONFIGS), default="qwen3-0.6b")
    parser.add_argument("--work", default="decode1,decode64,prefill8k,ttft1k,mini")
    parser.add_argument("--engine-args", default="{}", help="more arguments of Engine, as JSON")
    parser.add_argument("--rows", type=Path, help="append the rows to this file, as JSON lines")
    options = parser.parse_args()
    measurement = Measurement(options)
    works: dict[str, Callable[[], None]] = {
        name: getattr(measurement, name)
        for name in ("decode1", "decode64", "prefill8k", "ttft1k", "mini")
    }
    try:
        for name in filter(None, options.work.split(",")):
            works[name]()
    finally:
        if options.rows is not None:
            with options.rows.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in measurement.rows)
        print_summary(measurement.rows)
        measurement.engine.shutdown()


if __name__ == "__main__":
    main()
