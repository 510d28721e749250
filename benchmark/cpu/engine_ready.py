"""Starts an engine, says so, and ends it: what start_up.py times."""

from __future__ import annotations

import sys


def main() -> None:
    from sglang import Engine

    arguments = {"device": "cpu", "max_total_tokens": 4096, "max_running_requests": 8}
    engine = Engine(model_path=sys.argv[1], **arguments)
    print("ready", flush=True)
    engine.shutdown()


if __name__ == "__main__":
    main()
