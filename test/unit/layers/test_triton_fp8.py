"""The Triton kernels of eight-bit floating point in Triton's interpreter."""

from __future__ import annotations

import importlib.util

import pytest
from triton_interpreter import output_of, run_cases


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)
def test_kernels_in_the_interpreter() -> None:
    output = output_of(run_cases("triton_fp8_cases.py"))
    assert " passed" in output and "1 skipped" in output
