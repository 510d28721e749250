"""`sglang version`: the package's version and, in a checkout, the revision."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from sglang.version import __version__


def main(argv: Sequence[str], prog: str) -> int:
    """Print two lines; takes no options."""
    if argv:
        print(f"usage: {prog}")
        return 0 if argv[0] in ("-h", "--help") else 2
    print(f"sglang version: {__version__}")
    print(f"git revision: {git_revision()}")
    return 0


def git_revision() -> str:
    """Seven digits of the revision that the package runs from; "unknown" outside a checkout of it."""
    folder = Path(__file__).parent
    # The package may be installed inside somebody else's repository: this file must be tracked there.
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return "unknown"
    return _git(folder, "rev-parse", "--short=7", "HEAD") or "unknown"


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
