"""`GroupCoordinator`: one group of ranks and the collectives over it.

With a single rank every collective is the identity and no process group exists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from sglang.srt.distributed.device_communicators.peer_memory import PeerMemory

# torch 2.13 renamed the function and warns about the old name.
_NEW_NAME, _OLD_NAME = "all_gather_single", "all_gather_into_tensor"
_all_gather = getattr(dist, _NEW_NAME if _NEW_NAME in dir(dist) else _OLD_NAME)


class GroupCoordinator:
    """Ranks that work together on one thing (tensor slices, pipeline stages, experts).

    `ranks` are global ranks in group order. `device_group` moves tensors (nccl or gloo),
    `cpu_group` moves host objects; both are None for a single rank. Collectives expect every rank
    of the group to take part.
    """

    def __init__(
        self,
        ranks: list[int],
        rank: int,
        unique_name: str,
        device_group: dist.ProcessGroup | None = None,
        cpu_group: dist.ProcessGroup | None = None,
    ) -> None:
        assert len(ranks) == 1 or device_group is not None, "several ranks need a process group"
        self.ranks = ranks
        self.rank = rank
        self.unique_name = unique_name
        self.device_group = device_group
        self.cpu_group = cpu_group
        # Sums of small tensors without the communication library, where the ranks reach each other's memory.
        self.peer_memory: PeerMemory | None = None
        self.world_size = len(ranks)
        self.rank_in_group = ranks.index(rank)
        self.first_rank, self.last_rank = ranks[0], ranks[-1]
        self.is_first_rank = rank == ranks[0]
        self.is_last_rank = rank == ranks[-1]
        self.next_rank = ranks[(self.rank_in_group + 1) % self.world_size]
        self.prev_rank = ranks[(self.rank_in_group - 1) % self.world_size]

    def all_reduce(self, input_: torch.Tensor) -> torch.Tensor:
        """Sum over ranks. May overwrite `input_`; use the returned tensor."""
        if self.world_size == 1:
            return input_
        input_ = input_.contiguous()
        if self.peer_memory is not None and self.peer_memory.takes(input_):
            return self.peer_memory.all_reduce(input_)
        dist.all_reduce(input_, group=self.device_group)
        return input_

    def all_reduce_add_norm(
        self,
        input_: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor | None,
        eps: float,
        round_before_weight: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """`(rms_norm(s), s)` with `s = sum over ranks + residual`, [..., D], in one kernel; None where there is no such kernel for
        these tensors, and then on every rank, because only shapes and types decide."""
        peers = self.peer_memory
        if peers is None or not peers.takes_rows(input_, residual, weight):
            return None
        return peers.all_reduce_add_norm(input_, residual, weight, eps, round_before_weight)

    def all_gather(self, input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """Concatenate the equally shaped tensors of all ranks along `dim`, in group order."""
        if self.world_size == 1:
            return input_
        dim = dim % input_.dim()
        input_ = input_.contiguous()
        shape = list(input_.shape)
        stacked = input_.new_empty([self.world_size * shape[0], *shape[1:]])
        _all_gather(stacked, input_, group=self.device_group)
        if dim == 0:
            return stacked
        shape[dim] *= self.world_size
        parts = stacked.view(self.world_size, *input_.shape)
        return parts.movedim(0, dim).reshape(shape)

    def reduce_scatter(self, input_: torch.Tensor) -> torch.Tensor:
        """Sum over ranks and keep this rank's equal part of dimension 0."""
        if self.world_size == 1:
            return input_
        summed = self.all_reduce(input_.clone())
        return summed.chunk(self.world_size, dim=0)[self.rank_in_group]

    def broadcast(self, input_: torch.Tensor, src: int = 0) -> torch.Tensor:
        """Overwrite `input_` with the tensor of rank `src` (an index in the group)."""
        if self.world_size > 1:
            dist.broadcast(input_, src=self.ranks[src], group=self.device_group)
        return input_

    def send(self, tensor: torch.Tensor, dst: int | None = None) -> None:
        """Send to rank `dst` of the group; default the next one."""
        target = self.next_rank if dst is None else self.ranks[dst]
        dist.send(tensor.contiguous(), target, group=self.device_group)

    def recv(
        self, size: torch.Size, dtype: torch.dtype, src: int | None = None, device: Any = None
    ) -> torch.Tensor:
        """Receive a tensor of known shape from rank `src` of the group; default the previous
        one."""
        tensor = torch.empty(size, dtype=dtype, device=device)
        source = self.prev_rank if src is None else self.ranks[src]
        dist.recv(tensor, source, group=self.device_group)
        return tensor

    def broadcast_host(self, tensor: torch.Tensor, src: int = 0) -> torch.Tensor:
        """Overwrite a tensor in host memory with that of rank `src`, without touching the device."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=self.ranks[src], group=self.cpu_group)
        return tensor

    def min_of_hosts(self, value: int) -> int:
        """The smallest `value` of all ranks."""
        if self.world_size == 1:
            return value
        smallest = torch.tensor(value, dtype=torch.int64)
        dist.all_reduce(smallest, op=dist.ReduceOp.MIN, group=self.cpu_group)
        return int(smallest)

    def sum_of_hosts(self, value: int) -> int:
        """The sum of the `value` of all ranks."""
        if self.world_size == 1:
            return value
        total = torch.tensor(value, dtype=torch.int64)
        dist.all_reduce(total, group=self.cpu_group)
        return int(total)

    def gather_hosts(self, value: int) -> list[int]:
        """The `value` of every rank, in group order."""
        if self.world_size == 1:
            return [value]
        mine = torch.tensor([value], dtype=torch.int64)
        parts = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(parts, mine, group=self.cpu_group)
        return [int(part) for part in parts]

    def barrier(self) -> None:
        """Wait until every rank of the group is here."""
        if self.world_size > 1:
            dist.barrier(group=self.cpu_group)

    def destroy(self) -> None:
        """Give the process groups back to torch."""
        self.peer_memory = None
        for group in (self.device_group, self.cpu_group):
            if group is not None:
                dist.destroy_process_group(group)
        self.device_group = self.cpu_group = None
