"""Two files of answers side by side, item by item; exit status 1 when any answer differs.

python benchmark/mmmu/compare.py answer_sglang.json MODEL_answer_hf.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("answers", nargs=2, type=Path)
    one, other = (_read(path) for path in parser.parse_args(argv).answers)
    different = [key for key in one if key in other and one[key] != other[key]]
    alone = one.keys() ^ other.keys()
    for key in different:
        print(f"{key}: {one[key]!r} and {other[key]!r}")
    for key in sorted(alone):
        print(f"{key}: in one file only")
    print(f"{len(one.keys() & other.keys()) - len(different)} of {len(one)} answers are equal")
    return 1 if different or alone else 0


def _read(path: Path) -> dict[str, Any]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    return {row["id"]: row["response"].strip() for row in rows}


if __name__ == "__main__":
    sys.exit(main())
