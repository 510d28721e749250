"""Deals media to the tensor-parallel ranks: each computes a share with a whole tower, then all have all rows.

Legend: N embedding rows, ... what follows them (a width, or places and a width).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from sglang.srt.distributed import each_rank_alone, get_tp_group
from sglang.srt.multimodal.inputs import MultimodalDataItem


def shares_of(sizes: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Which of the media, of so many rows each, every rank computes: the largest first, each to the rank that has the least.

    A rank that gets none computes the smallest of all too, so that every rank knows width and dtype of the rows.
    """
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    for index in order:
        rank = loads.index(min(loads))
        shares[rank].append(index)
        loads[rank] += sizes[index]
    return [sorted(share) or order[-1:] for share in shares]


def compute_dealt(
    compute: Callable[[list[int]], torch.Tensor], sizes: Sequence[int]
) -> torch.Tensor:
    """Rows [N, ...] of all media in order, as `compute(range(len(sizes)))` would make them.

    `compute(indices)` makes the rows of some of the media, `sizes[i]` each; it runs with this rank alone. A single medium is computed by
    every rank. Every rank of the group must call this with the same sizes. Raises RuntimeError when `compute` makes another number of rows.
    """
    group = get_tp_group()
    if len(sizes) < 2 or group.world_size == 1:
        with each_rank_alone():
            return compute(list(range(len(sizes))))
    shares = shares_of(sizes, group.world_size)
    mine = shares[group.rank_in_group]
    with each_rank_alone():
        rows = compute(mine)
    count = sum(sizes[index] for index in mine)
    if len(rows) != count:
        raise RuntimeError(f"the tower made {len(rows)} rows for {count} places of its share")
    most = max(sum(sizes[index] for index in share) for share in shares)
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[:count] = rows
    by_rank = group.all_gather(padded, dim=0).unflatten(0, (group.world_size, most))
    found: dict[int, torch.Tensor] = {}
    for share, gathered in zip(shares, by_rank, strict=True):
        pieces = gathered[: sum(sizes[index] for index in share)].split(
            [sizes[index] for index in share]
        )
        found.update(zip(share, pieces, strict=True))
    return torch.cat([found[index] for index in range(len(sizes))])


def embed_dealt(
    function: Callable[[list[MultimodalDataItem]], torch.Tensor], items: list[MultimodalDataItem]
) -> torch.Tensor:
    """`function(items)` [N, D], every item computed by one rank."""
    sizes = [sum(last + 1 - first for first, last in item.offsets or []) for item in items]

    def compute(indices: list[int]) -> torch.Tensor:
        rows = function([items[index] for index in indices])
        return rows.reshape(-1, rows.shape[-1])

    return compute_dealt(compute, sizes)
