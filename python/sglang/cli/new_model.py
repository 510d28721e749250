"""`sglang new-model NAME --like ARCH`: begin an architecture as a copy of another, with its tiny configuration, test and docs row.

The copy passes `sglang verify --tiny` before a line of it is changed, so whatever fails later is the author's last change.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

_EPILOG = """
examples:
  sglang new-model acme --like LlamaForCausalLM             into this checkout
  sglang new-model acme --like mistral --plugin acme-sglang a package of its own
"""


def main(argv: Sequence[str], prog: str = "sglang new-model") -> int:
    """Write the files, print their names and what to do next. Exit code 2 for a name that cannot be used."""
    parser = argparse.ArgumentParser(
        prog,
        description="Begin a model file as a copy of another: model, tiny configuration, test, docs row.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "name", metavar="NAME", help="acme or my_model; the class is AcmeForCausalLM"
    )
    parser.add_argument(
        "--like", required=True, metavar="ARCH", help="architecture or model_type to start from"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--root", metavar="DIR", help="checkout to write into (default: this one)")
    where.add_argument("--plugin", metavar="DIR", help="write an installable package there instead")
    try:
        args = parser.parse_args(list(argv))
    except SystemExit as end:
        return int(end.code or 0)
    from sglang.srt.utils.errors import ConfigError
    from sglang.verify.scaffold import Scaffold  # late: --help must be fast

    try:
        scaffold = Scaffold(args.name, args.like)
        if args.plugin is not None:
            written = scaffold.write_plugin(Path(args.plugin))
        else:
            written = scaffold.write_into(Path(args.root) if args.root else checkout())
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(f"wrote {path}")
    print("\n".join(["next:", *(f"  {line}" for line in scaffold.next_steps(args.plugin))]))
    return 0


def checkout() -> Path:
    """The repository that this package runs from."""
    return Path(__file__).resolve().parents[3]
