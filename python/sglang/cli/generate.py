"""`sglang generate`: a known command name that this implementation has no use for."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str], prog: str) -> int:
    """Say what to use instead."""
    print(
        f"error: {prog} makes images and video with diffusion models, which are not implemented; "
        "for text use sglang serve or the Engine class",
        file=sys.stderr,
    )
    return 2
