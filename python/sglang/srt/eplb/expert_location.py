"""What a model class says about its experts so that they could be moved between ranks. Compatibility: nobody moves them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ModelConfigForExpertLocation:
    """`num_logical_experts` per layer, in `num_groups` routing groups."""

    num_layers: int
    num_logical_experts: int
    num_groups: int | None = None
