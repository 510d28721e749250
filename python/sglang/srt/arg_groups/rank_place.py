"""Where a tensor-parallel rank runs: its number, its machine, and how it meets the other ranks.

Light on purpose: the front reads it to know which ranks to start.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from sglang.srt.environ import envs

if TYPE_CHECKING:
    from sglang.srt.arg_groups.ports import PortArgs
    from sglang.srt.server_args import ServerArgs

LOOPBACK = "127.0.0.1"
_LOOPBACK_NAMES = (LOOPBACK, "localhost", "::1")


@dataclasses.dataclass(frozen=True)
class RankPlace:
    """One rank of a server. The default is the only rank of a server without tensor parallelism."""

    tp_size: int = 1
    tp_rank: int = 0
    ranks_per_node: int = 1
    local_rank: int = 0  # number among the ranks of this machine
    init_method: str = ""  # torch.distributed URL where the ranks meet
    host: str = LOOPBACK  # rank 0's machine, as the other ranks reach it
    timeout: float | None = None  # seconds to wait for other ranks; None: torch's own limits

    @staticmethod
    def of(server_args: ServerArgs, ports: PortArgs, tp_rank: int) -> RankPlace:
        """The place of rank `tp_rank` on the machine that the flags describe."""
        ranks = local_tp_ranks(server_args)
        host = LOOPBACK
        if server_args.dist_init_addr is not None:
            host = server_args.dist_init_addr.rpartition(":")[0].strip("[]")
        return RankPlace(
            tp_size=server_args.tp_size,
            tp_rank=tp_rank,
            ranks_per_node=len(ranks),
            local_rank=tp_rank - ranks.start,
            init_method=_init_method(server_args, ports),
            host=host,
            timeout=server_args.dist_timeout,
        )

    def gpu(self, server_args: ServerArgs) -> int:
        """The number of this rank's GPU, where its machine has some."""
        return server_args.base_gpu_id + self.local_rank * server_args.gpu_id_step

    @property
    def is_on_loopback(self) -> bool:
        """Every rank is reached without leaving the machine."""
        return self.host in _LOOPBACK_NAMES


def local_tp_ranks(server_args: ServerArgs) -> range:
    """The ranks that run on this machine: neighbours, machine after machine."""
    per_node = server_args.tp_size // server_args.nnodes
    first = server_args.node_rank * per_node
    return range(first, first + per_node)


def _init_method(server_args: ServerArgs, ports: PortArgs) -> str:
    """On one machine a file in the private folder: no port that others could reach. The environment may say otherwise."""
    if (given := envs.SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE.get()) is not None:
        return given
    if server_args.dist_init_addr is not None:
        return f"tcp://{server_args.dist_init_addr}"
    if server_args.nccl_port is not None:
        return f"tcp://{LOOPBACK}:{server_args.nccl_port}"
    return f"file://{ports.socket_dir}/ranks"
