"""The command line of the serving benchmark."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from sglang.bench.backends import BACKENDS, RequestOptions
from sglang.bench.datasets import DatasetArgs
from sglang.bench.image_datasets import IMAGE_DATASETS, ImageArgs
from sglang.srt.environ import envs
from sglang.srt.utils.errors import ConfigError

LATER_BACKENDS = ("trt", "gserver", "truss")
_PORTS = {"sglang": 30000, "vllm": 8000, "lmdeploy": 23333}

# Flags of subjects that are not built yet: known, and refused with the name of the subject.
_LATER_FLAGS: dict[str, tuple[str, ...]] = {
    "LoRA adapters": ("lora-name", "lora-request-distribution", "lora-zipf-alpha"),
    "profiling": (
        "profile",
        "profile-activities",
        "profile-num-steps",
        "profile-by-stage",
        "profile-stages",
        "profile-output-dir",
        "profile-prefix",
        "pd-separated",
        "profile-prefill-url",
        "profile-decode-url",
    ),
    "trace replay": (
        "use-trace-timestamps",
        "mooncake-slowdown-factor",
        "mooncake-num-rounds",
        "mooncake-workload",
    ),
    "conversations of several turns": ("gsp-num-turns",),
    "routing keys": ("gsp-send-routing-key",),
    "routed experts": ("return-routed-experts",),
    "plots in the terminal": ("plot-throughput",),
}
_LATER_DATASETS = ("mooncake",)


class _NotYet(argparse.Action):
    """A flag with any number of values whose subject is not built yet."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        if option == "--gsp-num-turns" and values == ["1"]:
            return  # the default, spelled out
        subject = next(s for s, names in _LATER_FLAGS.items() if str(option)[2:] in names)
        parser.error(f"{option} is not available yet ({subject}); leave it out")


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of `python -m sglang.bench_serving`."""
    parser = argparse.ArgumentParser(
        prog=prog, usage="%(prog)s [flags]", description="Measure a running server."
    )
    _add_target(parser)
    DatasetArgs.add_cli_args(parser)
    for action in parser._actions:
        if action.dest == "dataset_name" and action.choices is not None:
            action.choices = [*action.choices, *IMAGE_DATASETS, *_LATER_DATASETS]
    ImageArgs.add_cli_args(parser)
    _add_traffic(parser)
    _add_output(parser)
    for name in (name for names in _LATER_FLAGS.values() for name in names):
        hidden = argparse.SUPPRESS
        parser.add_argument(f"--{name}", action=_NotYet, nargs="*", default=hidden, help=hidden)
    return parser


def parse_args(argv: Sequence[str] | None, prog: str | None = None) -> argparse.Namespace:
    """Parse and check; argparse ends the program with code 2 for what cannot work."""
    parser = make_parser(prog)
    args = parser.parse_args(argv)
    if args.backend in LATER_BACKENDS:
        parser.error(f"--backend {args.backend} is not available yet; use one of {list(BACKENDS)}")
    if args.dataset_name in _LATER_DATASETS:
        parser.error(f"--dataset-name {args.dataset_name} is not available yet")
    if not args.request_rate > 0:
        parser.error(f"--request-rate {args.request_rate} must be positive, or inf")
    for name in ("max_concurrency", "num_prompts"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return args


def base_url(args: argparse.Namespace) -> str:
    """Where the server is."""
    if args.base_url:
        return args.base_url.rstrip("/")
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(args.host, args.host)
    return f"http://{host}:{args.port or _PORTS[args.backend.partition('-')[0]]}"


def headers(args: argparse.Namespace) -> dict[str, str]:
    """`--header K=V ...` as a mapping, with the key of the environment unless one is among them.

    Raises ConfigError for one without `=`.
    """
    pairs = [header.partition("=") for header in args.header or []]
    for name, separator, _ in pairs:
        if not separator:
            raise ConfigError(f"--header {name!r} must look like NAME=VALUE")
    found = {name: value for name, _, value in pairs}
    key = envs.API_KEY.get() or envs.OPENAI_API_KEY.get()
    if key and not any(name.lower() == "authorization" for name in found):
        found["Authorization"] = f"Bearer {key}"
    return found


def request_options(args: argparse.Namespace, model: str) -> RequestOptions:
    """Raises ConfigError for an extra body that is not a JSON object."""
    return RequestOptions(
        model=args.served_model_name or model,
        stream=not args.disable_stream,
        ignore_eos=not args.disable_ignore_eos,
        return_logprob=args.return_logprob,
        extra_body=parse_extra_body(args.extra_request_body),
    )


def parse_extra_body(text: str | None) -> dict[str, Any]:
    """The value of `--extra-request-body`. Raises ConfigError when it is not a JSON object."""
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise ConfigError(f"--extra-request-body {text!r} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f'--extra-request-body {text!r} must be a JSON object, as {{"a": 1}}')
    return value


def _add_target(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("target").add_argument
    add("--backend", choices=[*BACKENDS, *LATER_BACKENDS], default="sglang")
    add("--base-url", help="instead of host and port")
    add("--host", default="0.0.0.0")
    add("--port", type=int, help="default: 30000 for sglang, 8000 for vllm, 23333 for lmdeploy")
    add("--model", help="default: the first model the server lists")
    add("--served-model-name", help="name in the requests, when it differs from --model")
    add("--tokenizer", help="folder or hub name; default: the server's, else --model")
    add("--header", nargs="+", metavar="NAME=VALUE", help="sent with every request")


def _add_traffic(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("traffic").add_argument
    add("--request-rate", type=float, default=float("inf"), help="per second, Poisson arrivals")
    add("--max-concurrency", type=int, help="most requests under way at once")
    add("--warmup-requests", type=int, default=1)
    add("--flush-cache", action="store_true", help="empty the prefix cache after warm-up")
    add = parser.add_argument_group("request").add_argument
    add("--disable-stream", action="store_true")
    add("--disable-ignore-eos", action="store_true", help="let the model end its answers")
    add("--return-logprob", action="store_true")
    add("--extra-request-body", metavar="JSON", help="merged into every body")


def _add_output(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("output").add_argument
    add("--output-file", help="JSON lines, appended")
    add("--output-details", action="store_true", help="add one entry per request to the record")
    add("--print-requests", action="store_true", help="print one line per request")
    add("--disable-tqdm", action="store_true", help="no progress line")
    add("--tag", help="stored in the record")
