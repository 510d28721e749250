import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # tiny checkpoints: models.tiny
sys.path.insert(0, str(Path(__file__).parent))

from server import running  # noqa: E402


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The demo model, served with a small pool and metrics on."""
    log = tmp_path_factory.mktemp("server") / "log"
    args = ["--enable-metrics", "--max-total-tokens", "8192", "--max-running-requests", "16"]
    args += ["--enable-cache-report", "--max-queued-requests", "64", "--random-seed", "0"]
    # How requests meet in batches changes the order of sums, which 16 bits would show in what is drawn.
    args += ["--dtype", "float32"]
    with running(args, log) as handle:
        yield handle
