"""The Mamba 2 mixer. Compatibility: not implemented, there is no pool of recurrent states; its weight loader is."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sglang.srt.layers.parameter import mark_filled
from sglang.srt.utils.absent import absent_class

MambaMixer2 = absent_class("MambaMixer2", "the Mamba 2 mixer", torch.nn.Module)


def mamba_v2_sharded_weight_loader(
    shard_spec: list[tuple[int, int, float]], tp_size: int, tp_rank: int
) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """A loader of tensors that join several parts along dimension 0, each cut over ranks separately.

    `shard_spec` holds for each part its full size with the copies that ranks add, how much of that is such copies, and the number of
    neighbouring ranks that hold the same slice.
    """

    def load(param: torch.Tensor, loaded_weight: torch.Tensor) -> None:
        given = placed = 0
        for full_dim, extra, ratio in shard_spec:
            size = full_dim // tp_size
            first = int(tp_rank // ratio) * size if ratio else tp_rank * size
            take = min(size, full_dim - extra - first)
            param.data[placed : placed + take].copy_(loaded_weight[given + first :][:take])
            given += full_dim - extra
            placed += size
        mark_filled(param)

    return load
