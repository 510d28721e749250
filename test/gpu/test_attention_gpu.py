"""Attention backends on a GPU, against attention written out in float32. See `run_attention.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from attention_cases import World, is_within, make_backend  # noqa: E402
from gpu_cases import CAPTURED, CASE_DTYPES  # noqa: E402
from stale_cases import STALE, STALE_CAPTURED  # noqa: E402

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def _name(case, dtype) -> str:
    return f"{case.name.replace(' ', '_')}-{str(dtype).removeprefix('torch.')}"


CHECKED = CASE_DTYPES + STALE
REPLAYED = CAPTURED + STALE_CAPTURED
PACKAGES = {"triton": "triton", "flashinfer": "flashinfer", "fa3": "sgl_kernel"}


@pytest.fixture(params=PACKAGES)
def backend(request) -> str:
    pytest.importorskip(PACKAGES[request.param])
    if request.param == "fa3" and torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("fa3 needs a Hopper GPU")
    return request.param


@pytest.mark.parametrize("case, dtype", CHECKED, ids=[_name(*pair) for pair in CHECKED])
def test_against_the_oracle(case, dtype, backend):
    world = World(case, dtype, "cuda")
    found = world.errors(world.run(make_backend(world, backend)))
    assert is_within(found, dtype), found


@pytest.mark.parametrize("case", REPLAYED, ids=[c.name.replace(" ", "_") for c in REPLAYED])
def test_captured_decodes_follow_the_lengths_of_a_replay(case, backend):
    world = World(case, torch.bfloat16, "cuda")
    with torch.inference_mode():
        found = world.errors(world.run_captured(make_backend(world, backend)))
    assert is_within(found, world.dtype), found
