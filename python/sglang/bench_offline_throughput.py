"""Throughput of the engine without a server: every prompt at once.

    python -m sglang.bench_offline_throughput --model-path M --dataset-name random-ids --num-prompts 64 \\
        --random-input-len 256 --random-output-len 64
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from typing import TYPE_CHECKING, Any

from sglang.bench.datasets import BenchRequest, DatasetArgs, sample_requests
from sglang.bench.options import parse_extra_body
from sglang.bench.report import BLOCK_WIDTH, append_record, format_line
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.errors import ConfigError

if TYPE_CHECKING:
    from sglang.srt.entrypoints.engine import Engine

WARMUP_PROMPTS = 16
WARMUP_LEN = 256
WARMUP_OUTPUT_LEN = 16

_BLOCK = [
    ("Backend:", "backend"),
    ("Successful requests:", "successful_requests"),
    ("Benchmark duration (s):", "total_latency"),
    ("Total input tokens:", "total_input_tokens"),
    ("Total generated tokens:", "total_output_tokens"),
    ("Last generation throughput (tok/s):", "last_gen_throughput"),
    ("Request throughput (req/s):", "request_throughput"),
    ("Input token throughput (tok/s):", "input_throughput"),
    ("Output token throughput (tok/s):", "output_throughput"),
    ("Total token throughput (tok/s):", "total_throughput"),
]


@dataclasses.dataclass
class BenchArgs(DatasetArgs):
    """Flags of this tool; the server's flags come in addition."""

    backend: str = "engine"
    result_filename: str = ""
    disable_ignore_eos: bool = False
    extra_request_body: str | None = None
    return_logprob: bool = False
    logprob_start_len: int = -1
    profile: bool = False
    skip_warmup: bool = False
    do_not_exit: bool = False

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> None:
        DatasetArgs.add_cli_args(parser)
        add = parser.add_argument_group("benchmark").add_argument
        add("--backend", choices=["engine", "runtime"], default="engine")
        add("--result-filename", default="", help="JSON lines, appended")
        add("--disable-ignore-eos", action="store_true", help="let the model end its answers")
        add("--extra-request-body", metavar="JSON", help="merged into the sampling parameters")
        add("--return-logprob", action="store_true")
        add("--logprob-start-len", type=int, default=-1)
        add(
            "--profile",
            action="store_true",
            help="record operators of the run; see docs/developer_guide",
        )
        add("--skip-warmup", action="store_true")
        add("--do-not-exit", action="store_true", help="wait after the run, to look at the process")


def throughput_test(server_args: ServerArgs, bench_args: BenchArgs) -> dict[str, Any]:
    """Start an engine, run the benchmark, print the block and return the numbers.

    Raises ConfigError for arguments that cannot work.
    """
    # Late: `--help` must not import the engine.
    from sglang.srt.entrypoints.engine import Engine
    from sglang.srt.utils.hf_transformers_utils import get_tokenizer

    _refuse_unavailable(bench_args)
    tokenizer = get_tokenizer(
        server_args.tokenizer_path or str(server_args.model_path),
        tokenizer_mode=server_args.tokenizer_mode,
        trust_remote_code=server_args.trust_remote_code,
    )
    requests = sample_requests(bench_args, tokenizer)
    with Engine(server_args=server_args) as engine:
        if not bench_args.skip_warmup:
            _generate(engine, bench_args, _warmup_requests(bench_args, tokenizer))
        if bench_args.profile:
            engine.start_profile()
        result = _measure(engine, bench_args, requests)
        if bench_args.profile:
            print(engine.stop_profile())
        print(format_result(result))
        if bench_args.result_filename:
            append_record(bench_args.result_filename, result)
        if bench_args.do_not_exit:
            input("The engine is still running; press Enter to end it. ")
    return result


def format_result(result: dict[str, Any]) -> str:
    """The printed block."""
    title = " Offline Throughput Benchmark Result "
    lines = [format_line(label, result[key]) for label, key in _BLOCK]
    return "\n".join(["", title.center(BLOCK_WIDTH, "="), *lines, "=" * BLOCK_WIDTH])


def _refuse_unavailable(args: BenchArgs) -> None:
    if args.backend != "engine":
        raise ConfigError(f"--backend {args.backend} is not available yet; use engine")


def _warmup_requests(args: BenchArgs, tokenizer: Any) -> list[BenchRequest]:
    warm = dataclasses.replace(
        args,
        dataset_name="random-ids",
        num_prompts=min(WARMUP_PROMPTS, args.num_prompts),
        random_input_len=WARMUP_LEN if args.dataset_name != "random-ids" else args.random_input_len,
        random_output_len=WARMUP_OUTPUT_LEN,
        seed=args.seed + 1,  # other prompts, so that the prefix cache cannot help the run
    )
    return sample_requests(warm, tokenizer)


def _measure(engine: Engine, args: BenchArgs, requests: list[BenchRequest]) -> dict[str, Any]:
    started = time.perf_counter()
    answers = _generate(engine, args, requests)
    latency = time.perf_counter() - started
    states = engine.get_server_info()["internal_states"]
    infos = [answer["meta_info"] for answer in answers]
    inputs = sum(info["prompt_tokens"] for info in infos)
    outputs = sum(info["completion_tokens"] for info in infos)
    return {
        "backend": args.backend,
        "successful_requests": sum(1 for info in infos if info["finish_reason"]["type"] != "abort"),
        "total_latency": latency,
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": len(answers) / latency,
        "input_throughput": inputs / latency,
        "output_throughput": outputs / latency,
        "total_throughput": (inputs + outputs) / latency,
        "last_gen_throughput": states[0]["last_gen_throughput"],
    }


def _generate(
    engine: Engine, args: BenchArgs, requests: list[BenchRequest]
) -> list[dict[str, Any]]:
    extra = parse_extra_body(args.extra_request_body)
    params = [
        {
            "temperature": 0.0,
            "max_new_tokens": request.output_len,
            "ignore_eos": not args.disable_ignore_eos,
            **extra,
        }
        for request in requests
    ]
    prompts: list[Any] = [request.prompt for request in requests]
    is_text = isinstance(prompts[0], str)
    if not is_text and isinstance(prompts[0][0], dict):
        raise ConfigError("the engine takes no chat messages; add --apply-chat-template")
    answers = engine.generate(
        prompt=prompts if is_text else None,
        input_ids=None if is_text else prompts,
        sampling_params=params,
        return_logprob=args.return_logprob,
        logprob_start_len=args.logprob_start_len if args.return_logprob else None,
    )
    assert isinstance(answers, list), "a list of prompts gives a list of answers"
    return answers


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    ServerArgs.add_cli_args(parser)
    BenchArgs.add_cli_args(parser)
    namespace = parser.parse_args(argv)
    try:
        bench_args = BenchArgs.from_cli_args(namespace)
        throughput_test(ServerArgs.from_cli_args(namespace), bench_args)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
