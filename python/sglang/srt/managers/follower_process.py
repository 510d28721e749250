"""The process of a tensor-parallel rank other than 0: loads its slice of the model and carries out the plans of rank 0.

It makes no decision and answers nobody. It ends with 0 when rank 0 says goodbye, and with 1 and a reason when it fails or rank 0 is gone.
"""

from __future__ import annotations

import logging
import os
import threading
import traceback
from typing import TYPE_CHECKING

from sglang.srt.arg_groups.rank_place import RankPlace
from sglang.srt.managers.io_struct import SchedulerReady
from sglang.srt.managers.mailbox import send_once
from sglang.srt.managers.prefetch import begin_prefetch, wait_for_imports
from sglang.srt.managers.scheduler_process import prepare_process, reason_of
from sglang.srt.managers.watchdog import Watchdog

if TYPE_CHECKING:
    from sglang.srt.distributed.channel import FollowerChannel
    from sglang.srt.model_executor.parallel_worker import FollowerWorker
    from sglang.srt.server_args import PortArgs, ServerArgs

logger = logging.getLogger(__name__)


def run_follower_process(
    server_args: ServerArgs, port_args: PortArgs, tp_rank: int, parent_pid: int | None = None
) -> None:
    """Target of the spawned process."""
    prepare_process(server_args, tp_rank, parent_pid)
    place = RankPlace.of(server_args, port_args, tp_rank)
    threads = begin_prefetch(server_args.device, place.gpu(server_args))
    worker, channel = _start(server_args, port_args, place, threads)
    channel.watch(_leave)
    watchdog = Watchdog(server_args.watchdog_timeout)
    try:
        _follow(worker, channel, watchdog)
    except ConnectionError:
        _leave("Rank 0 is gone")
    except Exception as error:  # process boundary: the state cannot be trusted any more
        reason = reason_of(error)
        logger.error("Rank %d hit an exception: %s%s", tp_rank, traceback.format_exc(), reason)
        channel.say_last_words(reason)
        send_once(port_args, SchedulerReady(error=f"Rank {tp_rank} failed: {reason}"))
        os._exit(1)
    worker.close()


def _start(
    server_args: ServerArgs,
    port_args: PortArgs,
    place: RankPlace,
    threads: list[threading.Thread],
) -> tuple[FollowerWorker, FollowerChannel]:
    """Build the worker and tell the front: rank 0's front hears of failures only, another machine's of its first rank's success."""
    try:
        # Late, so that a broken install is reported through the socket like any other failure.
        from sglang.srt.managers.scheduler_builder import build_follower

        wait_for_imports(threads)
        worker, channel = build_follower(server_args, place)
    except Exception as error:  # process boundary: the reason goes to whoever started us
        logger.debug("%s", traceback.format_exc())
        reason = f"rank {place.tp_rank}: {type(error).__name__}: {error}"
        send_once(port_args, SchedulerReady(error=reason))
        os._exit(1)
    if server_args.node_rank > 0 and place.local_rank == 0:
        info = {"pid": os.getpid(), "tp_rank": place.tp_rank}
        send_once(port_args, SchedulerReady(info=info))
    return worker, channel


def _follow(worker: FollowerWorker, channel: FollowerChannel, watchdog: Watchdog) -> None:
    while (frame := channel.receive()) is not None:
        watchdog.begin_turn()
        worker.carry_out(frame)
        watchdog.rest()


def _leave(reason: str) -> None:
    logger.error("%s; this rank ends", reason)
    os._exit(1)
