"""What grammars allow next, from the scheduler to the sampler."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class RowMasks:
    """A mask for each of some rows of a step. W: ceil(V / 32)."""

    rows: list[int]
    words: np.ndarray  # int32 [rows, W]; bit t % 32 of word t // 32 is set where token t is allowed
