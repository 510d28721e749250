"""Sums over GPUs by size of the message: NCCL's, torch's over symmetric memory, and ours; alone, and with the norm that follows.

    python benchmark/gpu/time_all_reduce.py [--ranks 4]

Microseconds a call in a replayed graph of bfloat16 rows of 4,096, the slowest rank's. Each is checked against the sum in float64 first;
a way that cannot be set up or is wrong prints a dash.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WIDTH = 4096
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CALLS = 32  # in a graph
REPLAYS = 20
Call = Callable[[torch.Tensor], torch.Tensor]


def graph_time(call: Callable[[], object]) -> float:
    """Microseconds, the median of replays."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        for _ in range(CALLS):
            call()
        graph.capture_end()
    torch.cuda.synchronize()
    times = []
    for _ in range(REPLAYS):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) * 1e3 / CALLS)
    graph.reset()
    return sorted(times)[REPLAYS // 2]


def part(rank: int, rows: int) -> torch.Tensor:
    generator = torch.Generator(device="cuda").manual_seed(100 * rows + rank)
    return torch.randn(rows, WIDTH, device="cuda", generator=generator).bfloat16()


def torch_ways(group_name: str) -> dict[str, Call]:
    """Torch's sums over symmetric memory; the copy into it is part of the call, as it would be in a model."""
    from torch.distributed import _symmetric_memory as symmetric

    buffer = symmetric.empty(
        ROWS[-1] * WIDTH,
        dtype=torch.bfloat16,
        device=torch.device("cuda", torch.cuda.current_device()),
    )
    symmetric.rendezvous(buffer, group_name)
    ops = torch.ops.symm_mem

    def fill(x: torch.Tensor) -> torch.Tensor:
        view = buffer[: x.numel()].view_as(x)
        view.copy_(x)
        return view

    return {
        "torch one": lambda x: ops.one_shot_all_reduce(fill(x), "sum", group_name),
        "torch two": lambda x: ops.two_shot_all_reduce_(fill(x), "sum", group_name),
    }  # fmt: skip


def ways(group, device: torch.device) -> dict[str, Call]:
    """Name to a function of this rank's part that returns the sum."""
    from sglang.srt.distributed.device_communicators.peer_memory import connect_peer_memory

    def library(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        dist.all_reduce(x, group=group.device_group)
        return x

    found: dict[str, Call] = {"nccl": library}
    peers = connect_peer_memory(group, device)
    if peers is not None:
        found["ours"] = peers.all_reduce
    try:
        found |= torch_ways(group.device_group.group_name)
    except (RuntimeError, AttributeError) as error:
        print(f"torch's symmetric memory: {error}", flush=True)
    weight = torch.ones(WIDTH, device=device, dtype=torch.bfloat16)
    from sglang.srt.layers.triton_ops.norm import rms_norm

    found["nccl norm"] = lambda x: rms_norm(library(x), weight, 1e-5, x)[0]
    if peers is not None:
        found["ours norm"] = lambda x: peers.all_reduce_add_norm(x, x, weight, 1e-5)[0]
    return found


def is_right(name: str, call: Call, rank: int, ranks: int, rows: int) -> bool:
    mine = part(rank, rows)
    want = sum(part(other, rows).double() for other in range(ranks))
    if name.endswith("norm"):
        want = want + mine.double()
        want = want / want.square().mean(-1, keepdim=True).add(1e-5).sqrt()
    for _ in range(3):  # again, into the same memory
        try:
            found = call(mine.clone()).double()
        except RuntimeError as error:
            print(f"{name}: {error}", flush=True)
            return False
        if not (found - want).norm() <= 1e-2 * want.norm():
            return False
    return True


def run_rank(rank: int, ranks: int, url: str) -> None:
    from sglang.srt.distributed import (
        destroy_distributed_environment,
        get_tp_group,
        init_distributed_environment,
        initialize_model_parallel,
    )
    from sglang.srt.distributed.device_communicators.peer_memory import MAX_BYTES
    from sglang.srt.distributed.rendezvous import avoid_multicast

    avoid_multicast()
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    init_distributed_environment(ranks, rank, url, rank, "nccl", 120)
    initialize_model_parallel(ranks)
    group = get_tp_group()
    group.all_reduce(torch.zeros(1, device=device))
    calls = ways(group, device)
    if rank == 0:
        print(f"{'KiB':>8}" + "".join(f"{name:>12}" for name in calls), flush=True)
    for rows in ROWS:
        line = f"{rows * WIDTH * 2 / 1024:8.0f}"
        for name, call in calls.items():
            x = part(rank, rows)
            # Above it the engine asks the library.
            takes = not name.startswith("ours") or rows * WIDTH * 2 <= MAX_BYTES
            right = takes and is_right(name, call, rank, ranks, rows)
            if group.min_of_hosts(int(right)):
                spent = graph_time(lambda call=call, x=x: call(x))
                spent = max(group.gather_hosts(int(spent * 1000))) / 1000
                line += f"{spent:12.2f}"
            else:
                line += f"{'-':>12}"
        if rank == 0:
            print(line, flush=True)
    torch.cuda.synchronize()
    group.barrier()
    destroy_distributed_environment()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run_rank, (options.ranks, f"file://{folder}/ranks"), options.ranks)


if __name__ == "__main__":
    main()
