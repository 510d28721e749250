"""`python -m sglang.launch_server <flags>`: start the HTTP server and stay until it ends."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sglang.srt.utils.errors import ConfigError

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs


def run_server(server_args: ServerArgs) -> None:
    """Serve until interrupted. Raises ConfigError for flags that turn out impossible on this machine."""
    from sglang.srt.entrypoints.http_server import launch_server  # late: --help must be fast

    launch_server(server_args)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse and serve; the exit code is 2 for a wrong configuration, as with argparse."""
    from sglang.srt.server_args import prepare_server_args

    try:
        run_server(prepare_server_args(sys.argv[1:] if argv is None else argv, prog))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(prog="python -m sglang.launch_server"))
