"""Latency of one static batch without a server, and a quick look at correctness.

    python -m sglang.bench_one_batch --model-path M --batch-size 1 8 --input-len 256 --output-len 32
    python -m sglang.bench_one_batch --model-path M --correct

The model, the worker and the KV pool are those of the server; there is no scheduler and no HTTP. `--correct` prints the same prompts in the
same layout as `scripts/playground/reference_hf.py`, so the two can be read side by side.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.errors import ConfigError
from sglang.srt.utils.log_setup import configure_logging
from sglang.test.prompts import CORRECTNESS_PROMPTS

if TYPE_CHECKING:
    from sglang.srt.model_executor.static_batch import StaticBatch
    from sglang.srt.model_executor.worker import TpWorker


@dataclasses.dataclass
class BenchArgs:
    """Flags of this tool; the server's flags come in addition."""

    run_name: str = "default"
    batch_size: list[int] = dataclasses.field(default_factory=lambda: [1])
    input_len: list[int] = dataclasses.field(default_factory=lambda: [1024])
    output_len: list[int] = dataclasses.field(default_factory=lambda: [16])
    correctness_test: bool = False
    cut_len: int = 4
    prompt_filename: str = ""
    result_filename: str = "result.jsonl"
    log_decode_step: int = 0

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("benchmark")
        group.add_argument("--run-name", default="default")
        for name, default in (("batch-size", 1), ("input-len", 1024), ("output-len", 16)):
            group.add_argument(f"--{name}", type=int, nargs="+", default=[default])
        group.add_argument("--correctness-test", action="store_true")
        group.add_argument("--cut-len", type=int, default=4)
        group.add_argument("--prompt-filename", default="")
        group.add_argument("--result-filename", default="result.jsonl")
        group.add_argument("--log-decode-step", type=int, default=0)

    @classmethod
    def from_cli_args(cls, namespace: argparse.Namespace) -> BenchArgs:
        return cls(**{f.name: getattr(namespace, f.name) for f in dataclasses.fields(cls)})


class Bench:
    """The loaded model with its worker."""

    def __init__(self, server_args: ServerArgs) -> None:
        from sglang.srt.managers.scheduler_builder import load_runner, load_tokenizer
        from sglang.srt.model_executor.worker import TpWorker

        server_args, resolved, model_config, self.runner = load_runner(server_args)
        self.worker: TpWorker = TpWorker(self.runner, seed=resolved.random_seed)
        self.page_size = resolved.page_size
        self.vocab_size = model_config.vocab_size
        self.tokenizer = load_tokenizer(server_args, resolved)

    def batch(self, batch_size: int, max_len: int, **options: Any) -> StaticBatch:
        """`options` are those of StaticBatch."""
        from sglang.srt.model_executor.static_batch import StaticBatch

        return StaticBatch(self.worker, batch_size, max_len, self.page_size, **options)

    def fits(self, batch_size: int, max_len: int) -> bool:
        pages = -(-max_len // self.page_size)
        return (
            batch_size * pages * self.page_size <= self.runner.max_total_num_tokens
            and batch_size <= self.runner.max_running_requests
            and max_len <= self.runner.model_config.context_len
        )


def correctness_test(bench: Bench, args: BenchArgs) -> None:
    """Prefill in two pieces (the second over the cached first), then greedy decoding; prints logits and texts."""
    prompts = _read_prompts(args.prompt_filename) or CORRECTNESS_PROMPTS
    ids = [bench.tokenizer.encode(prompt) for prompt in prompts]
    output_len = args.output_len[0]
    batch = bench.batch(len(ids), max(map(len, ids)) + output_len)
    print(f"max_total_num_tokens={bench.runner.max_total_num_tokens}")
    print(f"\ninput_ids={ids}\n")
    cut = min(args.cut_len, min(map(len, ids)) - 1)
    if cut > 0:
        first = batch.extend([row[:cut] for row in ids])
        print("prefill logits (first half):", first.logits, "\n")
    step = batch.extend([row[max(cut, 0) :] for row in ids])
    print("prefill logits (final):", step.logits, "\n")
    outputs = [list(row) for row in ids]
    for index in range(output_len):
        if index:
            step = batch.decode()
        for row, token in zip(outputs, step.result().next_ids, strict=True):
            row.append(token)
    for index, row in enumerate(outputs):
        print(f"========== Prompt {index} ==========")
        print(bench.tokenizer.decode(row), "\n")


def latency_test(bench: Bench, args: BenchArgs) -> None:
    """Sweep batch size x input length x output length."""
    sizes = list(itertools.product(args.batch_size, args.input_len, args.output_len))
    batch_size, input_len, _ = sizes[0]
    print("Warmup ...")
    warm_len = min(input_len, 32)
    if bench.fits(batch_size, warm_len + 4):
        _run_case(bench, args, batch_size, warm_len, 4)
    print("\nBenchmark ...")
    for batch_size, input_len, output_len in sizes:
        if not bench.fits(batch_size, input_len + output_len):
            print(
                f"skip batch_size={batch_size} input_len={input_len} output_len={output_len}: "
                f"more than the pool of {bench.runner.max_total_num_tokens} tokens, "
                f"{bench.runner.max_running_requests} rows or the context of "
                f"{bench.runner.model_config.context_len} holds"
            )
            continue
        result = {
            "run_name": args.run_name,
            **_run_case(bench, args, batch_size, input_len, output_len),
        }
        if args.result_filename:
            with open(args.result_filename, "a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")


def _run_case(
    bench: Bench, args: BenchArgs, batch_size: int, input_len: int, output_len: int
) -> dict[str, Any]:
    batch = bench.batch(batch_size, input_len + output_len)
    prompts = _synthetic_prompts(bench, args, batch_size, input_len)
    started = time.perf_counter()
    batch.extend(prompts).result()
    prefill = time.perf_counter() - started
    print(
        f"Prefill. latency: {prefill:6.5f} s, throughput: {input_len * batch_size / prefill:9.2f} token/s"
    )
    decodes = [_timed_decode(batch, index, args.log_decode_step) for index in range(output_len - 1)]
    total = prefill + sum(decodes)
    case = {
        "batch_size": batch_size,
        "input_len": input_len,
        "output_len": output_len,
        "prefill_latency": prefill,
        "prefill_throughput": input_len * batch_size / prefill,
    }
    if decodes:
        median = statistics.median(decodes)
        print(
            f"Decode.  median latency: {median:6.5f} s, median throughput: {batch_size / median:9.2f} token/s"
        )
        case |= {"median_decode_latency": median, "median_decode_throughput": batch_size / median}
    throughput = (input_len + output_len) * batch_size / total
    print(f"Total. latency: {total:6.3f} s, throughput: {throughput:9.2f} token/s")
    return case | {"total_latency": total, "overall_throughput": throughput}


def _timed_decode(batch: StaticBatch, index: int, log_every: int) -> float:
    started = time.perf_counter()
    batch.decode().result()
    latency = time.perf_counter() - started
    if index < 5 or (log_every and index % log_every == 0):
        size = len(batch.lengths)
        print(
            f"Decode {index}. Batch size: {size}, latency: {latency:6.5f} s, "
            f"throughput: {size / latency:9.2f} token/s"
        )
    return latency


def _synthetic_prompts(
    bench: Bench, args: BenchArgs, batch_size: int, input_len: int
) -> list[list[int]]:
    """Random ids, or the given prompts cut or repeated to the asked length."""
    import numpy as np

    texts = _read_prompts(args.prompt_filename)
    if not texts:
        rng = np.random.default_rng(0)
        return rng.integers(0, bench.vocab_size, (batch_size, input_len)).tolist()
    ids = [
        bench.tokenizer.encode(text)
        for text in itertools.islice(itertools.cycle(texts), batch_size)
    ]
    return [(row * (input_len // len(row) + 1))[:input_len] for row in ids]


def _read_prompts(filename: str) -> list[str]:
    if not filename:
        return []
    with open(filename, encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file if line.strip()]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    ServerArgs.add_cli_args(parser)
    BenchArgs.add_cli_args(parser)
    namespace = parser.parse_args(argv)
    args = BenchArgs.from_cli_args(namespace)
    try:
        server_args = ServerArgs.from_cli_args(namespace)
        server_args.cuda_graph_max_bs = max(args.batch_size)
        configure_logging(server_args.log_level)
        bench = Bench(server_args)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    correctness_test(bench, args) if args.correctness_test else latency_test(bench, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
