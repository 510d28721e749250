"""`sglang verify`: does a checkpoint compute here what it computes in transformers? A report, and an exit status that says so."""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.verify.summary import Section

_WORDS = {True: "pass", False: "FAIL", None: "skip"}
_EPILOG = """
Exit status: 0 passed, 1 failed, 2 wrong usage. A plug-in is used when it is installed, or named in SGLANG_EXTERNAL_MODEL_PACKAGE.

examples:
  sglang verify path/to/checkpoint
  sglang verify org/model --full
  sglang verify --tiny LlamaForCausalLM
  sglang verify --tiny my_package/my_model.json
"""


def main(argv: Sequence[str], prog: str = "sglang verify") -> int:
    """Parse, verify, print one line per step and where the report is."""
    parser = make_parser(prog)
    try:
        args = parser.parse_args(list(argv))
        if (args.model is None) == (args.tiny is None):
            parser.error("give either MODEL or --tiny ARCH")
    except SystemExit as end:
        return int(end.code or 0)
    output = Path(args.output or default_output(args.model or args.tiny))
    if output.exists() and not output.is_dir():
        print(f"error: --output {str(output)!r} is a file; give a folder", file=sys.stderr)
        return 2
    return _verify(args, output, f"{prog} {shlex.join(argv)}")


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog,
        description=__doc__.split("`: ")[1],
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="checkpoint folder or hub id")
    parser.add_argument(
        "--tiny",
        metavar="ARCH",
        help="make a tiny random checkpoint: an architecture, a model_type, or a .json file",
    )
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--quick", action="store_true", help="a form of each kind (the default)")
    amount.add_argument("--full", action="store_true", help="every form")
    parser.add_argument(
        "--no-ranks", action="store_true", help="do not start tensor-parallel processes"
    )
    parser.add_argument("--no-speed", action="store_true", help="do not start an engine to time it")
    parser.add_argument(
        "--output", metavar="DIR", help="folder of the report (default: verify-NAME)"
    )
    parser.add_argument("--model-impl", choices=("auto", "sglang", "transformers"), default="auto")
    parser.add_argument("--revision", help="revision of a hub id")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code that the checkpoint brings"
    )
    return parser


def default_output(name: str) -> str:
    """`verify-` and the last part of the model's name."""
    stem = Path(name).name.removesuffix(".json") or "model"
    return "verify-" + re.sub(r"[^\w.-]+", "-", stem)


def _verify(args: argparse.Namespace, output: Path, command: str) -> int:
    if args.tiny is not None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported
    _be_quiet()
    from sglang.verify.command import Options, Verification  # late: --help must be fast

    options = Options(
        output=output,
        model=args.model,
        tiny=args.tiny,
        full=args.full,
        ranks=not args.no_ranks,
        speed=not args.no_speed,
        model_impl=args.model_impl,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
    )
    summary = Verification(options, command, _say).run()
    print(f"{'passed' if summary.passed else 'FAILED'}: see {output / 'report.md'}")
    return 0 if summary.passed else 1


def _be_quiet() -> None:
    """What the log would say is part of the report."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)


def _say(section: Section) -> None:
    print(f"{_WORDS[section.passed]}  {section.title:<10} {section.summary}", flush=True)
