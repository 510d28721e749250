"""Which ranks exist and how they are grouped.

Nothing needs to be initialised for one process: every group then is a single rank of size 1. With
several processes the worker calls `init_distributed_environment` and `initialize_model_parallel`
once, before the model is built. Rank order: tensor-parallel ranks are neighbours, pipeline stages
are `tp` apart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from sglang.srt.distributed.group import GroupCoordinator
from sglang.srt.distributed.rendezvous import open_tcp_store

__all__ = [
    "GroupCoordinator",
    "destroy_distributed_environment",
    "destroy_model_parallel",
    "get_moe_ep_group",
    "get_moe_expert_parallel_rank",
    "get_moe_expert_parallel_world_size",
    "get_moe_tensor_parallel_rank",
    "get_moe_tensor_parallel_world_size",
    "get_moe_tp_group",
    "get_pipeline_model_parallel_rank",
    "get_pipeline_model_parallel_world_size",
    "get_pp_group",
    "get_tensor_model_parallel_rank",
    "get_tensor_model_parallel_world_size",
    "get_tp_group",
    "get_world_group",
    "init_distributed_environment",
    "initialize_model_parallel",
    "model_parallel_is_initialized",
]

_GROUP_NAMES = ("world", "tp", "pp", "moe_ep", "moe_tp")
_SINGLE = {name: GroupCoordinator([0], 0, name) for name in _GROUP_NAMES}
_groups: dict[str, GroupCoordinator] = dict(_SINGLE)


def get_world_group() -> GroupCoordinator:
    return _groups["world"]


def get_tp_group() -> GroupCoordinator:
    return _groups["tp"]


def get_pp_group() -> GroupCoordinator:
    return _groups["pp"]


def get_moe_ep_group() -> GroupCoordinator:
    return _groups["moe_ep"]


def get_moe_tp_group() -> GroupCoordinator:
    return _groups["moe_tp"]


def get_tensor_model_parallel_world_size() -> int:
    return _groups["tp"].world_size


def get_tensor_model_parallel_rank() -> int:
    return _groups["tp"].rank_in_group


def get_pipeline_model_parallel_world_size() -> int:
    return _groups["pp"].world_size


def get_pipeline_model_parallel_rank() -> int:
    return _groups["pp"].rank_in_group


def get_moe_expert_parallel_world_size() -> int:
    return _groups["moe_ep"].world_size


def get_moe_expert_parallel_rank() -> int:
    return _groups["moe_ep"].rank_in_group


def get_moe_tensor_parallel_world_size() -> int:
    return _groups["moe_tp"].world_size


def get_moe_tensor_parallel_rank() -> int:
    return _groups["moe_tp"].rank_in_group


@contextlib.contextmanager
def each_rank_alone() -> Iterator[None]:
    """Inside, this rank is a tensor-parallel group of its own: layers that are made have whole weights, and no collective takes place."""
    names = ("tp", "moe_ep", "moe_tp")
    before = {name: _groups[name] for name in names}
    _groups.update({name: _SINGLE[name] for name in names})
    try:
        yield
    finally:
        _groups.update(before)


def init_distributed_environment(
    world_size: int = 1,
    rank: int = 0,
    distributed_init_method: str = "env://",
    local_rank: int = 0,
    backend: str = "gloo",
    timeout: float | None = None,
) -> None:
    """Join the process group of all ranks. A world of one rank needs none and is left alone.

    `distributed_init_method` is a torch.distributed URL; `timeout` is in seconds. With nccl the
    caller has chosen the device of `local_rank` before.
    """
    if world_size == 1:
        return
    limit = None if timeout is None else timedelta(seconds=timeout)
    meeting: dict[str, Any] = {"init_method": distributed_init_method}
    if distributed_init_method.startswith("tcp://"):
        meeting = {"store": open_tcp_store(distributed_init_method, world_size, rank, limit)}
    dist.init_process_group(
        backend=backend, world_size=world_size, rank=rank, timeout=limit, **meeting
    )
    cpu_group = dist.group.WORLD if backend == "gloo" else dist.new_group(backend="gloo")
    ranks = list(range(world_size))
    _groups["world"] = GroupCoordinator(ranks, rank, "world", dist.group.WORLD, cpu_group)


def initialize_model_parallel(
    tensor_model_parallel_size: int = 1,
    expert_model_parallel_size: int = 1,
    pipeline_model_parallel_size: int = 1,
) -> None:
    """Cut the world into tensor, pipeline and expert groups.

    Expert parallelism divides the tensor-parallel ranks: `ep * moe_tp = tp`. Raises ValueError when
    the sizes do not fit the number of ranks.
    """
    tp, ep, pp = (
        tensor_model_parallel_size,
        expert_model_parallel_size,
        pipeline_model_parallel_size,
    )
    world = _groups["world"]
    if tp * pp != world.world_size:
        raise ValueError(
            f"tensor parallel size {tp} x pipeline size {pp} must equal the number of ranks, "
            f"{world.world_size}"
        )
    if tp % ep != 0:
        raise ValueError(f"expert parallel size {ep} must divide the tensor parallel size {tp}")
    if world.world_size == 1:
        return
    stages = [list(range(stage * tp, (stage + 1) * tp)) for stage in range(pp)]
    moe_tp = tp // ep
    _groups["tp"] = _create_group("tp", stages)
    _groups["pp"] = _create_group("pp", [list(ranks) for ranks in zip(*stages, strict=True)])
    _groups["moe_ep"] = _create_group(
        "moe_ep", [s[i::moe_tp] for s in stages for i in range(moe_tp)]
    )
    _groups["moe_tp"] = _create_group(
        "moe_tp", [s[i * moe_tp : (i + 1) * moe_tp] for s in stages for i in range(ep)]
    )


def model_parallel_is_initialized() -> bool:
    """True once the world of several ranks has been cut into groups."""
    return any(_groups[name] is not _SINGLE[name] for name in ("tp", "pp"))


def destroy_model_parallel() -> None:
    """Forget the tensor, pipeline and expert groups; every group is a single rank again."""
    for name in _GROUP_NAMES[1:]:
        group, _groups[name] = _groups[name], _SINGLE[name]
        if group.world_size not in (1, _groups["world"].world_size):
            group.destroy()


def destroy_distributed_environment() -> None:
    """Leave the process group of all ranks, and forget every group."""
    for name in _GROUP_NAMES:
        _groups[name] = _SINGLE[name]
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _create_group(name: str, partitions: list[list[int]]) -> GroupCoordinator:
    """The group that this rank is in. Every rank creates all groups: torch requires it."""
    world = _groups["world"]
    mine: GroupCoordinator | None = None
    for ranks in partitions:
        if len(ranks) == 1:
            device_group = cpu_group = None
        elif len(ranks) == world.world_size:
            device_group, cpu_group = world.device_group, world.cpu_group
        else:
            device_group = dist.new_group(ranks)
            is_gloo = dist.get_backend(world.device_group) == "gloo"
            cpu_group = device_group if is_gloo else dist.new_group(ranks, backend="gloo")
        if world.rank in ranks:
            mine = GroupCoordinator(ranks, world.rank, name, device_group, cpu_group)
    assert mine is not None, f"rank {world.rank} is in no {name} group"
    return mine
