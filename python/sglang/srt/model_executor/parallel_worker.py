"""Workers of a server with several tensor-parallel ranks.

Rank 0 sends every plan to the other ranks and carries it out like a single worker. The others build the same batch and run their slice
of the model. Rank 0 alone samples, be it after a wait for a grammar; the ids travel in one small collective, so no rank depends on the
others computing ties, sums and random numbers alike, and the settings of the sampler (prompts for penalties, grammar masks) need not
travel.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator

import msgspec
import torch

from sglang.srt.arg_groups.rank_place import RankPlace
from sglang.srt.distributed import (
    GroupCoordinator,
    destroy_distributed_environment,
    get_tp_group,
    init_distributed_environment,
    initialize_model_parallel,
)
from sglang.srt.distributed.channel import SECRET_BYTES, FollowerChannel, LeaderChannel
from sglang.srt.distributed.device_communicators.peer_memory import connect_peer_memory
from sglang.srt.distributed.rendezvous import avoid_multicast, stay_on_loopback
from sglang.srt.managers.step_plan import StepError, StepPlan
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.model_executor.worker import LaunchedStep, TpWorker
from sglang.srt.platforms import Platform
from sglang.srt.sampling.row_masks import RowMasks
from sglang.srt.utils.upload import upload

_ADDRESS = struct.Struct(f"<H{SECRET_BYTES}s")


class LeaderWorker:
    """The worker of rank 0."""

    def __init__(self, worker: TpWorker, channel: LeaderChannel) -> None:
        self._worker = worker
        self._channel = channel
        self._encoder = msgspec.msgpack.Encoder()

    def launch(self, plan: StepPlan) -> LaunchedStep:
        """Both parts of a plan without grammars."""
        self.forward(plan)
        return self.sample()

    def forward(self, plan: StepPlan) -> None:
        """Send `plan` to the other ranks, then queue its forward pass here.

        Raises RuntimeError when memory runs out: the other ranks wait for this one in a collective, so nothing can follow.
        """
        self._channel.send(self._encoder.encode(without_sampling(plan)))
        with _no_survivors():
            self._worker.forward(plan)

    def sample(self, masks: RowMasks | None = None) -> LaunchedStep:
        """As TpWorker; the other ranks wait for the ids meanwhile. Raises RuntimeError as `forward` does."""
        with _no_survivors():
            return self._worker.sample(masks)

    def prepare(self) -> bool:
        """As TpWorker, on every rank: a plan without works says so to the others."""
        self._channel.send(self._encoder.encode(StepPlan(step_id=0, mode="extend", works=[])))
        return self._worker.prepare()

    def close(self) -> None:
        """End the other ranks and leave the group."""
        self._channel.close()
        self._worker.close()
        destroy_distributed_environment()


class FollowerWorker:
    """The worker of another rank: same batches, same collectives, no sampler."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._builder = runner.builder
        self._group = get_tp_group()
        self._decoder = msgspec.msgpack.Decoder(StepPlan)

    @torch.inference_mode()
    def carry_out(self, frame: bytes) -> None:
        """Queue an encoded plan on the device, or prepare for later ones where it has no works.

        Raises msgspec.ValidationError for anything else.
        """
        plan = self._decoder.decode(frame)
        if not plan.works:
            self._runner.prepare()
            return
        batch = self._builder.build(plan)
        self._runner.forward(batch)
        rows = sampled_rows(plan, batch.req_pool_indices)
        if not len(rows):
            return
        next_ids = torch.empty(len(rows), dtype=torch.int64, device=self._runner.device)
        self._group.broadcast(next_ids)
        self._builder.next_token_ids[rows] = next_ids

    def close(self) -> None:
        """Leave the group."""
        self._runner.release_graphs()
        destroy_distributed_environment()


def without_sampling(plan: StepPlan) -> StepPlan:
    """The part of a plan that a rank needs which does not sample; media are part of it."""
    return msgspec.structs.replace(plan, setups=[]) if plan.setups else plan


@contextlib.contextmanager
def _no_survivors() -> Iterator[None]:
    """Of several ranks none goes on after a step that failed on one."""
    try:
        yield
    except StepError as error:
        raise RuntimeError(f"Rank 0 of several cannot go on. {error}") from error


def sampled_rows(plan: StepPlan, rows: torch.Tensor) -> torch.Tensor:
    """Those of `rows` int64 [B] whose works sample; queued without waiting for the device."""
    picked = [index for index, work in enumerate(plan.works) if work.sample]
    if len(picked) == len(plan.works):
        return rows
    return rows[upload(picked, torch.int64, rows.device)]


def join_ranks(place: RankPlace, platform: Platform, use_peer_memory: bool = True) -> None:
    """Meet the other ranks; returns when all are there and a first collective went through.

    The first collective comes before memory is measured: it allocates what the communication library needs. `use_peer_memory`: small
    sums may go past the library, where the ranks are GPUs of one machine that reach each other's memory.
    """
    if place.is_on_loopback:
        stay_on_loopback()
    avoid_multicast()
    platform.activate()
    init_distributed_environment(
        world_size=place.tp_size,
        rank=place.tp_rank,
        distributed_init_method=place.init_method,
        local_rank=place.local_rank,
        backend=platform.distributed_backend,
        timeout=place.timeout,
    )
    initialize_model_parallel(place.tp_size)
    group = get_tp_group()
    group.all_reduce(torch.zeros(1, device=platform.device))
    platform.synchronize()
    if use_peer_memory and platform.is_cuda and place.ranks_per_node == place.tp_size:
        group.peer_memory = connect_peer_memory(group, platform.device)


def open_leader_channel(place: RankPlace) -> LeaderChannel:
    """Rank 0's end, connected to every other rank. All ranks must open theirs at the same time."""
    channel = LeaderChannel(place.host)
    _share_address(get_tp_group(), _ADDRESS.pack(channel.port, channel.secret))
    channel.accept(place.tp_size - 1, place.timeout)
    return channel


def open_follower_channel(place: RankPlace) -> FollowerChannel:
    """The end of another rank, connected to rank 0."""
    port, secret = _ADDRESS.unpack(_share_address(get_tp_group(), bytes(_ADDRESS.size)))
    return FollowerChannel(place.host, port, secret, place.tp_rank)


def _share_address(group: GroupCoordinator, address: bytes) -> bytes:
    """Rank 0's bytes, on every rank."""
    return (
        group.broadcast_host(torch.frombuffer(bytearray(address), dtype=torch.uint8))
        .numpy()
        .tobytes()
    )
