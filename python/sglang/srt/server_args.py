"""`ServerArgs`: every flag of the server, as one dataclass composed from the topics in `arg_groups`.

The same names are keywords of `Engine`. Constructing one checks it; it does not look at the machine, so importing
and parsing cost no torch. `arg_groups.resolve` turns it into the values that components receive.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import ipaddress
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import sglang
from sglang.srt.arg_groups.cache_tiers import DisaggregationArgs, HierarchicalCacheArgs
from sglang.srt.arg_groups.checks import check_combinations
from sglang.srt.arg_groups.config_file import expand_config_file
from sglang.srt.arg_groups.features import (
    DebugArgs,
    ExperimentalArgs,
    GrammarArgs,
    MultimodalArgs,
)
from sglang.srt.arg_groups.fields import add_flags, check_status, check_value, flag_specs
from sglang.srt.arg_groups.http import HttpArgs
from sglang.srt.arg_groups.kernels import KernelArgs, TuningArgs
from sglang.srt.arg_groups.lora import LoraArgs
from sglang.srt.arg_groups.model import ModelArgs
from sglang.srt.arg_groups.observability import ObservabilityArgs
from sglang.srt.arg_groups.parallel import ExpertArgs, ParallelArgs
from sglang.srt.arg_groups.ports import PortArgs
from sglang.srt.arg_groups.precision import PrecisionArgs
from sglang.srt.arg_groups.resolve import Facts, ResolvedArgs, collect_facts, resolve
from sglang.srt.arg_groups.scheduling import SchedulingArgs
from sglang.srt.arg_groups.speculative import SpeculativeArgs

__all__ = [
    "DEMO_MODEL_PATH",
    "Facts",
    "PortArgs",
    "ResolvedArgs",
    "ServerArgs",
    "collect_facts",
    "get_global_server_args",
    "make_parser",
    "prepare_server_args",
    "resolve",
    "set_global_server_args_for_scheduler",
]

logger = logging.getLogger(__name__)

# Served when no model is named, so that the first command a person types works without a download.
DEMO_MODEL_PATH = str(Path(sglang.__file__).parent / "demo_vlm")


@dataclasses.dataclass(kw_only=True)
class ServerArgs(
    ModelArgs,
    HttpArgs,
    PrecisionArgs,
    SchedulingArgs,
    ParallelArgs,
    ExpertArgs,
    ObservabilityArgs,
    KernelArgs,
    TuningArgs,
    LoraArgs,
    SpeculativeArgs,
    HierarchicalCacheArgs,
    DisaggregationArgs,
    MultimodalArgs,
    GrammarArgs,
    DebugArgs,
    ExperimentalArgs,
):
    """All flags.

    Construction raises ConfigError for a value that is wrong, does not go with another, or asks for what is not
    implemented. After construction `model_path` is a string; other unset values stay None until `resolve`.
    """

    def __post_init__(self) -> None:
        if self.model_path is None:
            self.model_path = DEMO_MODEL_PATH
        specs = flag_specs(type(self)).values()
        for spec in specs:
            check_value(spec, getattr(self, spec.name))
        check_combinations(self)
        for spec in specs:
            check_status(spec, getattr(self, spec.name), logger.warning)

    @property
    def uses_demo_model(self) -> bool:
        return self.model_path == DEMO_MODEL_PATH

    @property
    def skips_model(self) -> bool:
        """True for `--model-path none|dummy`: only the flags matter, no model file is looked at."""
        return str(self.model_path).lower() in ("none", "dummy")

    def public_dict(self) -> dict[str, Any]:
        """Field name -> value, ready for JSON; keys that guard the server are masked, Python objects named."""
        specs = flag_specs(type(self))
        values = {name: getattr(self, name) for name in specs}
        for name, value in values.items():
            if specs[name].secret and value is not None:
                values[name] = "***"
            elif callable(value):
                values[name] = repr(value)
        return values

    def url(self) -> str:
        """Where a client on this machine reaches the server."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if _is_ipv6(host) else f"http://{host}:{self.port}"

    @classmethod
    def add_cli_args(cls, parser: argparse.ArgumentParser) -> None:
        """Add every flag to a parser, which may have options of its own."""
        add_flags(parser, cls)

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> ServerArgs:
        """Build from a namespace of a parser that `add_cli_args` filled; other entries are left alone."""
        values = vars(args)
        return cls(**{name: values[name] for name in flag_specs(cls) if name in values})


class ServerParser(argparse.ArgumentParser):
    """Says what is wrong in one line: the usage of some four hundred flags would hide it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; {self.prog} --help lists the flags\n")


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of the server's command line; long options may be shortened."""
    parser = ServerParser(
        prog=prog,
        description="Serve a language model over HTTP.",
        # The default of 24 columns would break the line after almost every flag.
        formatter_class=functools.partial(argparse.HelpFormatter, max_help_position=44, width=110),
    )
    parser.add_argument(
        "--config",
        metavar="FILE.yaml",
        help="Take flags from a file; the command line wins over it.",
    )
    ServerArgs.add_cli_args(parser)
    return parser


def prepare_server_args(argv: Sequence[str], prog: str | None = None) -> ServerArgs:
    """Parse a command line (without the program's name).

    Raises ConfigError for values that cannot work, SystemExit for what argparse refuses.
    """
    namespace = make_parser(prog).parse_args(expand_config_file(argv, ServerArgs))
    return ServerArgs.from_cli_args(namespace)


_global_server_args: ServerArgs | None = None


def set_global_server_args_for_scheduler(server_args: ServerArgs) -> None:
    """Publish the flags to model files of this process; called once, before a model is built."""
    global _global_server_args
    _global_server_args = server_args


def get_global_server_args() -> ServerArgs:
    """The flags that model files read. Raises ValueError before they were set."""
    if _global_server_args is None:
        raise ValueError(
            "the global server args are not set in this process; "
            "call set_global_server_args_for_scheduler first"
        )
    return _global_server_args


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False
