"""Weights in the layout of AMX kernels. Compatibility: torch's matrix products choose AMX themselves, weights stay as they are."""

from __future__ import annotations

from typing import Any


class PackWeightMethod:
    """A quantization method in name only: it changes nothing after loading."""

    def __init__(
        self, weight_names: list[str], transpose_dims: list[tuple[int, int] | None] | None = None
    ) -> None:
        self.weight_names = weight_names
        self.transpose_dims = transpose_dims

    def process_weights_after_loading(self, module: Any) -> None:
        """Nothing to do."""
