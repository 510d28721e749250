"""`sglang <command> ...`: finds the command in a table and hands the remaining words over.

A command is imported only when it runs, so that listing them costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Command(NamedTuple):
    """`target` is `module:function`; the function takes the remaining words and the program's name."""

    target: str
    help: str


# Add a subcommand by adding a row.
COMMANDS: dict[str, Command] = {
    "serve": Command("sglang.launch_server:main", "serve a model over HTTP"),
    "models": Command("sglang.cli.models:main", "list what can be served, explain one model"),
    "verify": Command("sglang.cli.verify:main", "prove a checkpoint against transformers"),
    "new-model": Command("sglang.cli.new_model:main", "begin a model file as a copy of another"),
    "version": Command("sglang.cli.version:main", "print the version"),
    "check_env": Command("sglang.check_env:main", "print what the machine and the packages are"),
    "generate": Command("sglang.cli.generate:main", "not available: for diffusion models only"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    if words[0] == "--version":
        words[0] = "version"
    if words[0] not in COMMANDS:
        print(f"error: {words[0]!r} is no command\n\n{usage()}", file=sys.stderr)
        return 2
    return load(COMMANDS[words[0]])(words[1:], f"sglang {words[0]}")


def usage() -> str:
    """The text of `sglang --help`."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: sglang COMMAND ...", "", *rows, "", "sglang COMMAND --help says more."]
    )


def load(command: Command) -> Callable[[Sequence[str], str], int]:
    """Import the function behind a command."""
    module, _, function = command.target.partition(":")
    return getattr(importlib.import_module(module), function)


if __name__ == "__main__":
    sys.exit(main())
