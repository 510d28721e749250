"""A tiny Llama with its proof, made once."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from sglang.srt.configs.model_config import ModelConfig
from sglang.verify.coverage import Coverage, measure_coverage
from sglang.verify.proof import Proof
from sglang.verify.tiny import write_tiny


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="package")
def proof(llama: Path) -> Proof:
    return Proof(str(llama))


@pytest.fixture(scope="package")
def coverage(llama: Path) -> Coverage:
    return measure_coverage(str(llama), ModelConfig(str(llama), dtype="float32"))
