"""Draws without a sort, penalties and masks on a GPU, against the plain sampler on the CPU: the cases of the unit tests, at the vocabularies of models too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "layers"))

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

from triton_choose_cases import *  # noqa: E402, F403
from triton_edit_cases import *  # noqa: E402, F403
