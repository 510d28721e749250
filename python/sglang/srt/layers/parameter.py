"""Parameters that know how they are cut over ranks, and the record of what was loaded into them.

A checkpoint tensor may fill a whole parameter or one shard of a fused one ("q" of qkv, 0 of gate
and up). Loaders call `mark_filled`; the model loader compares `filled_shards` with
`expected_shards` and reports what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.nn import Parameter

ShardId = int | str | None
_WHOLE: frozenset[ShardId] = frozenset({None})


def mark_filled(param: torch.Tensor, shard_id: ShardId = None) -> None:
    """Record that a shard was loaded. None stands for the whole parameter, all its shards."""
    filled = param.__dict__.setdefault("filled_shards", set())
    filled |= expected_shards(param) if shard_id is None else {shard_id}


def expected_shards(param: torch.Tensor) -> set[ShardId]:
    """The shards that make the parameter complete; `{None}` when it is loaded as a whole."""
    return set(param.__dict__.get("expected_shards", _WHOLE))


def filled_shards(param: torch.Tensor) -> set[ShardId]:
    """The shards that were loaded so far."""
    return set(param.__dict__.get("filled_shards", ()))


def unfilled_shards(param: torch.Tensor) -> set[ShardId]:
    """The shards that still miss; empty when the parameter is complete."""
    return expected_shards(param) - filled_shards(param)


def expect_shards(params: Iterable[torch.Tensor], shards: Iterable[ShardId]) -> None:
    """Declare that parameters are filled shard by shard."""
    names = set(shards)
    for param in params:
        param.__dict__["expected_shards"] = set(names)


class BasevLLMParameter(Parameter):
    """A parameter with a loader, `weight_loader(param, loaded_weight[, shard_id])`."""

    def __new__(cls, data: torch.Tensor | None = None, **kwargs: object) -> BasevLLMParameter:
        return super().__new__(cls, data=data, requires_grad=False)

    def __init__(self, data: torch.Tensor, weight_loader: Callable[..., None]) -> None:
        self.weight_loader = weight_loader


class _ColumnParameter(BasevLLMParameter):
    """Cut along `output_dim`."""

    def __init__(self, output_dim: int, **kwargs: object) -> None:
        self.output_dim = output_dim
        super().__init__(**kwargs)  # type: ignore[arg-type]


class RowvLLMParameter(BasevLLMParameter):
    """Cut along `input_dim`."""

    def __init__(self, input_dim: int, **kwargs: object) -> None:
        self.input_dim = input_dim
        super().__init__(**kwargs)  # type: ignore[arg-type]


class ModelWeightParameter(_ColumnParameter, RowvLLMParameter):
    """A weight matrix: cut along `output_dim` in column layers and along `input_dim` in row
    layers."""


class GroupQuantScaleParameter(_ColumnParameter, RowvLLMParameter):
    """One scale per group of input columns and output row."""


class ChannelQuantScaleParameter(_ColumnParameter):
    """One scale per output row."""


class BlockQuantScaleParameter(_ColumnParameter, RowvLLMParameter):
    """One scale per block of the weight. `block_shape` (rows, columns) is set by the quantization
    method."""

    block_shape: tuple[int, int] | None = None


class PerTensorScaleParameter(BasevLLMParameter):
    """One scalar per fused part, [number of parts]; shard ids index it."""

    needs_scalar_to_array = True


class PackedColumnParameter(_ColumnParameter):
    """Several values in each element along `packed_dim`."""

    def __init__(
        self,
        packed_factor: int,
        packed_dim: int,
        marlin_tile_size: int | None = None,
        **kwargs: object,
    ) -> None:
        self.packed_factor = packed_factor
        self.packed_dim = packed_dim
        self.marlin_tile_size = marlin_tile_size
        super().__init__(**kwargs)  # type: ignore[arg-type]


class PackedvLLMParameter(PackedColumnParameter, RowvLLMParameter):
    """A packed weight matrix that can be cut along both dimensions."""
