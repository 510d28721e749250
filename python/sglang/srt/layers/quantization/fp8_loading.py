"""Placing codes and scales of eight-bit checkpoints into the parameters of linear layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sglang.srt.layers.parameter import ShardId, mark_filled
from sglang.srt.layers.quantization.block_scales import fp8_dtype
from sglang.srt.utils.errors import ConfigError

Loader = Callable[..., None]


def only_fp8(loader: Loader) -> Loader:
    """`loader` for tensors that hold eight-bit codes; raises ValueError for others, which casting would turn to nonsense."""

    def load(param: torch.Tensor, loaded: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        if loaded.dtype != fp8_dtype:
            raise ValueError(
                f"it is {loaded.dtype} where the config promises {fp8_dtype}; a layer that is not quantized must be "
                "listed in modules_to_not_convert of quantization_config"
            )
        loader(param, loaded, *args, **kwargs)

    return load


def refuse_update(param: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    """The loader of weights in a form that the checkpoint does not have."""
    raise ValueError("weights that were converted when they were loaded cannot be replaced")


class RowScaleLoader:
    """Loads scales [N, 1] of the rows of a weight whose parts have `sizes` rows. One scale of a part stands for all of its rows."""

    def __init__(self, loader: Loader, sizes: list[int]) -> None:
        self._loader = loader
        self._sizes = sizes

    def __call__(
        self, param: torch.nn.Parameter, loaded: torch.Tensor, shard_id: ShardId = None
    ) -> None:
        loaded = loaded.float()
        if loaded.numel() != 1:
            shards = () if shard_id is None else (shard_id,)
            rows = loaded if loaded.dim() == 2 else loaded.reshape(-1, 1)
            self._loader(param, rows, *shards)
            return
        rows = param.data
        if shard_id is not None:
            index = part_index(shard_id)
            rows = rows.narrow(0, sum(self._sizes[:index]), self._sizes[index])
        rows.fill_(loaded.item())
        mark_filled(param, shard_id)


class PartScaleLoader:
    """Loads one scale of each part, [parts]; a scale without a part is that of all."""

    def __call__(
        self, param: torch.nn.Parameter, loaded: torch.Tensor, shard_id: ShardId = None
    ) -> None:
        if loaded.numel() != 1:
            raise ValueError(f"it must be one number; its shape is {list(loaded.shape)}")
        target = param.data if shard_id is None else param.data[part_index(shard_id)]
        target.fill_(loaded.item())
        mark_filled(param, shard_id)


def part_index(shard_id: ShardId) -> int:
    """The number of a part of a fused layer."""
    return shard_id if isinstance(shard_id, int) else "qkv".index(str(shard_id))


def check_blocks(sizes: list[int], block: int, what: str, prefix: str) -> None:
    """Raises ConfigError unless a cut falls between blocks: a block has one scale."""
    for size in sizes:
        if size % block:
            raise ConfigError(
                f"{prefix}: {what} parts of {size} on each rank are no multiple of {block}, the block of "
                "weight_block_size; choose a smaller --tp"
            )
