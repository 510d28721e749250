"""One log format for every process of a server, on stderr."""

from __future__ import annotations

import logging
import sys

from sglang.srt.environ import envs


def configure_logging(level: str, prefix: str = "") -> None:
    """Set level and format of the root logger; `prefix` tells ranks apart. Raises ValueError for an unknown level."""
    numeric = logging.getLevelName(level.upper())
    if not isinstance(numeric, int):
        raise ValueError(
            f"log_level={level!r} is unknown; use debug, info, warning, error or critical"
        )
    handler = logging.StreamHandler(sys.stderr)
    fraction = ".%(msecs)03d" if envs.SGLANG_LOG_MS.get() else ""
    handler.setFormatter(
        logging.Formatter(f"[%(asctime)s{fraction}{prefix}] %(message)s", "%Y-%m-%d %H:%M:%S")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(numeric)
