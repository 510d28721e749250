"""The Triton kernels of layers on a GPU, against their plain torch forms: the cases of the unit tests, in bfloat16 too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "layers"))

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

from triton_decode_cases import *  # noqa: E402, F403
from triton_layer_cases import *  # noqa: E402, F403
