"""Measure a running server: throughput, time to first token, time between tokens.

    python -m sglang.bench_serving --backend sglang --dataset-name random-ids --num-prompts 100 \\
        --random-input-len 256 --random-output-len 64 --max-concurrency 8

The parts are in `sglang.bench`; this module puts them in order and is what people import and run.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sglang.bench import options
from sglang.bench.backends import BACKENDS, Backend, Outcome, send
from sglang.bench.datasets import BenchRequest, DatasetArgs, sample_requests
from sglang.bench.http_client import HttpClient, HttpStatusError
from sglang.bench.image_datasets import IMAGE_DATASETS, ImageArgs, sample_image_requests
from sglang.bench.report import (
    append_record,
    compute_metrics,
    details,
    format_block,
    report_failures,
)
from sglang.bench.traffic import Progress, arrival_times, replay
from sglang.srt.utils.errors import ConfigError

WARMUP_OUTPUT_LEN = 32
FLUSH_ATTEMPTS = 20
FLUSH_WAIT = 0.25  # seconds between attempts while the last requests leave the server

_UNREACHABLE = (OSError, EOFError, HttpStatusError)


def run_benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """Run with parsed flags, print the block, append the record and return it.

    Raises ConfigError when the server, the dataset or the tokenizer cannot be had, or when every warm-up request fails.
    """
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> dict[str, Any]:
    client = HttpClient(options.base_url(args), options.headers(args))
    try:
        model, tokenizer_path = await _find_model(args, client)
        tokenizer = _load_tokenizer(tokenizer_path)
        requests = _sample(args, tokenizer)
        backend = BACKENDS[args.backend](options.request_options(args, model))
        run = _Run(args, client, requests, backend)
        outcomes, duration = await run.measure()
        info = await _server_info(args, client)
    finally:
        client.close()
    report_failures(outcomes)
    lens = [len(tokenizer.encode(o.text, add_special_tokens=False)) for o in outcomes]
    record = _record(args, info, compute_metrics(outcomes, duration, lens))
    print(format_block(record))
    del record["max_itl_ms"]  # printed, but no key of the record
    full = {**record, **details(outcomes)} if args.output_details else record
    append_record(args.output_file or default_output_file(args), full)
    return full


@dataclasses.dataclass
class _Run:
    args: argparse.Namespace
    client: HttpClient
    requests: list[BenchRequest]
    backend: Backend

    async def measure(self) -> tuple[list[Outcome], float]:
        """Warm up, then send everything; outcomes and seconds."""
        args = self.args
        await self._warm_up()
        if args.flush_cache and args.backend.startswith("sglang"):
            await self._flush()
        progress = Progress(len(self.requests), enabled=not args.disable_tqdm)
        arrivals = arrival_times(len(self.requests), args.request_rate, args.seed)
        started = time.perf_counter()
        outcomes = await replay(
            self.requests, arrivals, self._send, args.max_concurrency, progress.advance
        )
        return outcomes, time.perf_counter() - started

    async def _send(self, request: BenchRequest) -> Outcome:
        outcome = await send(
            self.client, self.backend, request, stream=not self.args.disable_stream
        )
        if self.args.print_requests:
            print(
                f"input {outcome.prompt_len}, output {outcome.output_len}, ttft {outcome.ttft:.4f} s, "
                f"latency {outcome.latency:.4f} s, {outcome.error or repr(outcome.text[:80])}"
            )
        return outcome

    async def _warm_up(self) -> None:
        count = self.args.warmup_requests
        if count < 1:
            return
        first = self.requests[0]
        short = dataclasses.replace(first, output_len=min(first.output_len, WARMUP_OUTPUT_LEN))
        outcomes = await asyncio.gather(*(self._send(short) for _ in range(count)))
        if not any(outcome.success for outcome in outcomes):
            raise ConfigError(f"every warm-up request failed; the first: {outcomes[0].error}")

    async def _flush(self) -> None:
        for _ in range(FLUSH_ATTEMPTS):
            try:
                await self.client.request("POST", "/flush_cache")
                return
            except HttpStatusError as error:
                if error.status != 400:
                    raise ConfigError(f"--flush-cache: {error}") from error
                await asyncio.sleep(FLUSH_WAIT)
        raise ConfigError("--flush-cache: the server is busy with other requests")


async def _find_model(args: argparse.Namespace, client: HttpClient) -> tuple[str, str]:
    """Name of the model in requests, and where its tokenizer is."""
    try:
        model = args.model or (await client.json("GET", "/v1/models"))["data"][0]["id"]
        if args.tokenizer or args.model or not args.backend.startswith("sglang"):
            return model, args.tokenizer or model
        return model, (await client.json("GET", "/get_model_info"))["tokenizer_path"]
    except _UNREACHABLE as error:
        raise ConfigError(
            f"no server answers at {options.base_url(args)}: {error}; start one, or set --host and --port"
        ) from error
    except (LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the server names no model ({error!r}); set --model and --tokenizer"
        ) from error


def _sample(args: argparse.Namespace, tokenizer: Any) -> list[BenchRequest]:
    dataset = DatasetArgs.from_cli_args(args)
    if args.dataset_name in IMAGE_DATASETS:
        return sample_image_requests(dataset, ImageArgs.from_cli_args(args), tokenizer)
    return sample_requests(dataset, tokenizer)


def _load_tokenizer(path: str) -> Any:
    # Late: it imports transformers, and `--help` must not.
    from sglang.srt.utils.hf_transformers_utils import get_tokenizer

    return get_tokenizer(path)


async def _server_info(args: argparse.Namespace, client: HttpClient) -> dict[str, Any] | None:
    """What the server says of itself; None for servers of another kind and when it fails."""
    if not args.backend.startswith("sglang"):
        return None
    try:
        return await client.json("GET", "/get_server_info")
    except (*_UNREACHABLE, ValueError):
        return None


def _record(
    args: argparse.Namespace, info: dict[str, Any] | None, metrics: dict[str, Any]
) -> dict[str, Any]:
    states = (info or {}).get("internal_states") or [{}]
    rate = args.request_rate
    return {
        "tag": args.tag,
        "backend": args.backend,
        "dataset_name": args.dataset_name,
        "request_rate": "inf" if math.isinf(rate) else rate,  # JSON has no infinity
        "max_concurrency": args.max_concurrency,
        "sharegpt_output_len": args.sharegpt_output_len,
        "random_input_len": args.random_input_len,
        "random_output_len": args.random_output_len,
        "random_range_ratio": args.random_range_ratio,
        "server_info": info,
        **metrics,
        "accept_length": states[0].get("avg_spec_accept_length"),
    }


def default_output_file(args: argparse.Namespace) -> str:
    """`<backend>_<MMDD>_<num>_<lengths or dataset>.jsonl`."""
    words = [args.backend, datetime.now().strftime("%m%d"), str(args.num_prompts)]
    if args.dataset_name.startswith("random"):
        words += [str(args.random_input_len), str(args.random_output_len)]
    else:
        words.append(args.dataset_name)
    return "_".join(words) + ".jsonl"


def main(argv: Sequence[str] | None = None, prog: str = "python -m sglang.bench_serving") -> int:
    """Exit code 0 when requests succeeded, 1 when all failed, 2 for a wrong configuration."""
    args = options.parse_args(argv, prog)
    try:
        record = run_benchmark(args)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if record["completed"] else 1


if __name__ == "__main__":
    sys.exit(main())
