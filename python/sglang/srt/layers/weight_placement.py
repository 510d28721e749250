"""Where a checkpoint tensor goes inside a parameter: cutting for ranks and shards, with strict
shape checks."""

from __future__ import annotations

import torch

from sglang.srt.layers.parameter import BlockQuantScaleParameter
from sglang.srt.utils import ceil_div


def copy_into(target: torch.Tensor, loaded: torch.Tensor, name: str) -> None:
    """Copy with conversion of dtype and device. Raises ValueError unless the shapes are equal.

    A scalar may fill a tensor of one element.
    """
    if loaded.dim() == 0:
        loaded = loaded.reshape(1)
    if target.shape != loaded.shape and not target.numel() == loaded.numel() == 1:
        raise ValueError(
            f"{name}: the parameter expects shape {tuple(target.shape)}, the checkpoint tensor gives "
            f"{tuple(loaded.shape)}; check that the checkpoint belongs to this config"
        )
    target.copy_(loaded.reshape(target.shape))


def slice_for_rank(
    loaded: torch.Tensor,
    dim: int,
    size: int,
    rank: int,
    num_ranks: int,
    name: str,
    may_pad: bool = False,
) -> torch.Tensor:
    """The part [rank * size, (rank + 1) * size) of dimension `dim`.

    Raises ValueError unless that dimension has `size * num_ranks` elements. `may_pad`: where a
    layer was rounded up so that ranks divide it, the missing end (less than one rank's part) counts
    as zeros.
    """
    total = size * num_ranks
    given = loaded.shape[dim] if loaded.dim() > dim else None
    if given == total:
        return loaded if num_ranks == 1 else loaded.narrow(dim, rank * size, size)
    if may_pad and num_ranks > 1 and given is not None and total - size < given < total:
        return pad_or_narrow_weight(loaded, dim, rank * size, size)
    raise ValueError(
        f"{name}: dimension {dim} of the checkpoint tensor must be {total} ({size} for each of "
        f"{num_ranks} ranks); its shape is {tuple(loaded.shape)}"
    )


def pad_or_narrow_weight(
    loaded_weight: torch.Tensor, input_dim: int, start_idx: int, shard_size: int
) -> torch.Tensor:
    """`shard_size` elements of `input_dim` from `start_idx` on, with zeros past the end."""
    given = loaded_weight.shape[input_dim]
    start = min(start_idx, given)
    part = loaded_weight.narrow(input_dim, start, min(shard_size, given - start))
    missing = shard_size - part.shape[input_dim]
    if missing == 0:
        return part
    shape = list(part.shape)
    shape[input_dim] = missing
    return torch.cat([part, part.new_zeros(shape)], dim=input_dim)


def place_shard(
    param: torch.nn.Parameter,
    loaded: torch.Tensor,
    *,
    offset: int,
    size: int,
    index: int,
    rank: int,
    num_ranks: int,
    name: str,
    may_pad: bool = False,
) -> None:
    """Fill rows `offset .. offset + size` of a fused parameter with this rank's part of `loaded`.

    `offset` and `size` count output features; packed and block-wise parameters are converted.
    `index` is the number of the part, where a parameter keeps one scalar for each.
    """
    dim = param.__dict__.get("output_dim")
    if dim is None:
        copy_into(_scalar_slot(param, index), loaded, name)
        return
    offset, size = rescale_span(param, dim, offset), rescale_span(param, dim, size)
    if loaded.dim() != param.dim():
        raise ValueError(
            f"{name}: the parameter has {param.dim()} dimensions, the checkpoint tensor has shape "
            f"{tuple(loaded.shape)}"
        )
    part = slice_for_rank(loaded, dim, size, rank, num_ranks, name, may_pad)
    copy_into(param.data.narrow(dim, offset, size), part, name)


def rescale_span(param: torch.nn.Parameter, dim: int, features: int) -> int:
    """How many elements of the parameter stand for `features` output features."""
    attrs = param.__dict__
    if attrs.get("packed_dim") == dim:
        features //= attrs.get("packed_factor") or attrs["pack_factor"]
        return features * (attrs.get("marlin_tile_size") or 1)
    if isinstance(param, BlockQuantScaleParameter):
        assert param.block_shape is not None, "the quantization method must set block_shape"
        return ceil_div(features, param.block_shape[0])
    return features


def _scalar_slot(param: torch.nn.Parameter, index: int) -> torch.Tensor:
    """The entry of one fused part where the parameter has one for each, else all of it."""
    is_array = getattr(param, "needs_scalar_to_array", False)  # set by quantization methods
    return param.data[index : index + 1] if is_array else param.data
