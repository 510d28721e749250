"""Makes `test/models` importable as `models`, and adds `--record FILE`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, help="write what the proofs found into this JSON file")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--record", default=None)
    if path is not None and not hasattr(config, "workerinput"):
        from models.record import ProofRecord  # late: it imports torch

        config.pluginmanager.register(ProofRecord(path))
