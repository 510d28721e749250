"""Write docs/advanced_features/server_arguments.md from the declared flags; `--check` only compares."""

from __future__ import annotations

import sys
from pathlib import Path

from sglang.srt.arg_groups.reference import server_arguments_page
from sglang.srt.server_args import ServerArgs

PAGE = Path(__file__).parents[1] / "docs" / "advanced_features" / "server_arguments.md"


def main() -> int:
    page = server_arguments_page(ServerArgs)
    if "--check" in sys.argv[1:]:
        current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page
        print(f"{PAGE.name} is {'current' if current else 'out of date'}")
        return 0 if current else 1
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page, encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
