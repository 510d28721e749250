"""The scheduler process: says when it is ready or why it cannot start, and serves until told to stop or left alone."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING

from sglang.srt.arg_groups.rank_place import RankPlace
from sglang.srt.managers.io_struct import SchedulerReady
from sglang.srt.managers.mailbox import SocketMailbox
from sglang.srt.managers.prefetch import begin_prefetch, wait_for_imports
from sglang.srt.managers.watchdog import Watchdog
from sglang.srt.utils.log_setup import configure_logging
from sglang.srt.utils.start_clock import StartClock

if TYPE_CHECKING:
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.server_args import PortArgs, ServerArgs

logger = logging.getLogger(__name__)

PARENT_POLL_SECONDS = 1.0


def run_scheduler_process(
    server_args: ServerArgs, port_args: PortArgs, tp_rank: int = 0, parent_pid: int | None = None
) -> None:
    """Target of the spawned process of rank 0."""
    prepare_process(server_args, tp_rank, parent_pid)
    clock = StartClock()
    clock.lap("process")
    place = RankPlace.of(server_args, port_args, tp_rank)
    threads = begin_prefetch(server_args.device, place.gpu(server_args))
    mailbox = SocketMailbox(port_args)
    scheduler = _build(server_args, mailbox, place, clock, threads)
    try:
        _serve(scheduler, Watchdog(server_args.watchdog_timeout))
    except Exception as error:  # process boundary: the state cannot be trusted any more
        reason = reason_of(error)
        logger.error("Scheduler hit an exception: %s%s", traceback.format_exc(), reason)
        mailbox.send(SchedulerReady(error=f"The scheduler failed: {reason}"))
        mailbox.close()
        os._exit(1)
    scheduler.worker.close()
    mailbox.close()


def prepare_process(server_args: ServerArgs, tp_rank: int, parent_pid: int | None) -> None:
    """Logging, signals and the tie to the parent, for every rank."""
    configure_logging(server_args.log_level, f" TP{tp_rank}" if server_args.tp_size > 1 else "")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front decides when to stop
    faulthandler.enable()
    # Before torch loads OpenMP: threads that spin while they wait for each other starve whatever else needs the cores, the front
    # above all. Some tens of microseconds bridge the gaps within a step.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    if parent_pid is not None:
        _die_with_parent(parent_pid)


def _build(
    server_args: ServerArgs,
    mailbox: SocketMailbox,
    place: RankPlace,
    clock: StartClock,
    threads: list[threading.Thread],
) -> Scheduler:
    try:
        # Late, so that a broken install is reported through the socket like any other failure.
        from sglang.srt.managers.scheduler_builder import build_scheduler

        wait_for_imports(threads)
        clock.lap("imports")
        scheduler, info = build_scheduler(server_args, mailbox, place, clock)
    except Exception as error:  # process boundary: the reason goes to whoever started us
        logger.debug("%s", traceback.format_exc())
        mailbox.send(SchedulerReady(error=f"{type(error).__name__}: {error}"))
        mailbox.close()
        sys.exit(1)
    mailbox.send(SchedulerReady(info=info))
    logger.info("The scheduler started in %s", clock)
    return scheduler


def _serve(scheduler: Scheduler, watchdog: Watchdog) -> None:
    while not scheduler.is_stopping:
        watchdog.begin_turn()
        scheduler.wait_for_work()  # about a second at most
        scheduler.step()
    watchdog.rest()


def reason_of(error: Exception) -> str:
    """One line about an error that ends the process."""
    # Late: brings torch, which is there by now.
    from sglang.srt.platforms.device_errors import describe_failure

    return describe_failure(error)


def _die_with_parent(parent_pid: int) -> None:
    """End this process when its parent is gone, however that happened."""

    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(PARENT_POLL_SECONDS)
        os._exit(0)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
