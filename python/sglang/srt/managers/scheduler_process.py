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
from sglang.srt.utils.log_setup import configure_logging

if TYPE_CHECKING:
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.server_args import PortArgs, ServerArgs

logger = logging.getLogger(__name__)

PARENT_POLL_SECONDS = 1.0
WATCHDOG_EXIT_CODE = 3


def run_scheduler_process(
    server_args: ServerArgs, port_args: PortArgs, tp_rank: int = 0, parent_pid: int | None = None
) -> None:
    """Target of the spawned process of rank 0."""
    prepare_process(server_args, tp_rank, parent_pid)
    mailbox = SocketMailbox(port_args)
    scheduler = _build(server_args, mailbox, RankPlace.of(server_args, port_args, tp_rank))
    try:
        _serve(scheduler, Watchdog(server_args.watchdog_timeout))
    except Exception:  # process boundary: the state cannot be trusted any more
        logger.error("Scheduler hit an exception: %s", traceback.format_exc())
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


def _build(server_args: ServerArgs, mailbox: SocketMailbox, place: RankPlace) -> Scheduler:
    try:
        # Late, so that a broken install is reported through the socket like any other failure.
        from sglang.srt.managers.scheduler_builder import build_scheduler

        scheduler, info = build_scheduler(server_args, mailbox, place)
    except Exception as error:  # process boundary: the reason goes to whoever started us
        logger.debug("%s", traceback.format_exc())
        mailbox.send(SchedulerReady(error=f"{type(error).__name__}: {error}"))
        mailbox.close()
        sys.exit(1)
    mailbox.send(SchedulerReady(info=info))
    return scheduler


def _serve(scheduler: Scheduler, watchdog: Watchdog) -> None:
    while not scheduler.is_stopping:
        watchdog.rest()
        scheduler.wait_for_work()
        watchdog.begin_turn()
        scheduler.step()


class Watchdog:
    """Ends the process with a stack dump when one turn of the loop takes longer than `timeout` seconds."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._turn_started: float | None = None
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def begin_turn(self) -> None:
        self._turn_started = time.monotonic()

    def rest(self) -> None:
        """Waiting for requests is not hanging."""
        self._turn_started = None

    def _watch(self) -> None:
        while True:
            time.sleep(min(self._timeout / 4, 5.0))
            started = self._turn_started
            if started is not None and time.monotonic() - started > self._timeout:
                logger.error("The scheduler made no progress for %g s; stopping", self._timeout)
                faulthandler.dump_traceback(all_threads=True)
                os._exit(WATCHDOG_EXIT_CODE)


def _die_with_parent(parent_pid: int) -> None:
    """End this process when its parent is gone, however that happened."""

    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(PARENT_POLL_SECONDS)
        os._exit(0)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
