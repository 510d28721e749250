"""Capture of one CUDA graph, on every rank of a tensor-parallel group alike."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from sglang.srt.distributed import get_tp_group
from sglang.srt.distributed.agreement import do_alike
from sglang.srt.utils.errors import ConfigError

T = TypeVar("T")


def capture_graph(
    what: str, pool: Any, warm_up: Callable[[], Any], forward: Callable[[], T]
) -> tuple[torch.cuda.CUDAGraph, T]:
    """The graph of `forward`, and its output. Call under the capture stream.

    `warm_up` runs the same work first: a capture may not compile or load a kernel, nor connect ranks. `what` is for messages. Ranks
    go from step to step together, since each step holds collectives: what one rank cannot do, none does.
    """
    group = get_tp_group()
    do_alike(group, f"{what}, the run before", warm_up)
    if group.world_size > 1:
        torch.cuda.synchronize()  # no collective is under way while another is captured
    graph = torch.cuda.CUDAGraph()
    return graph, do_alike(group, what, lambda: _record(graph, pool, forward))


def check_alike(what: str, values: tuple[int, ...]) -> None:
    """Raises ConfigError on every rank unless all ranks have the same `values`."""
    digests = get_tp_group().gather_hosts(zlib.crc32(repr(values).encode()))
    if len(set(digests)) > 1:
        raise ConfigError(
            f"the ranks differ in {what}: {list(values)} on this one; set the flag to the same on every machine"
        )


def _record(graph: torch.cuda.CUDAGraph, pool: Any, forward: Callable[[], T]) -> T:
    # Other threads may use the device meanwhile, hence the thread's own error mode.
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        return forward()
    finally:
        graph.capture_end()
