"""Starts the scheduler processes of one server, watches them and ends them.

A process that ends, or that no longer shows signs of life, ends the others: they cannot go on alone.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Container
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.process import BaseProcess
from typing import Any

from sglang.srt.arg_groups.rank_place import local_tp_ranks
from sglang.srt.managers.watchdog import (
    STACKS_SIGNAL,
    WATCHDOG_EXIT_CODE,
    Counter,
    Stillness,
    be_watched,
    effective_timeout,
    look_interval,
)
from sglang.srt.models.registry import ModelRegistry
from sglang.srt.utils.common import kill_process_tree
from sglang.srt.utils.start_clock import note_process_start

logger = logging.getLogger(__name__)

# (server_args, port_args, tp_rank, parent_pid) -> runs until the server ends
SchedulerTarget = Callable[[Any, Any, int, int], None]

# A child ends with this code when the user's script starts an engine while the child imports it.
UNGUARDED_SCRIPT_EXIT_CODE = 83
UNGUARDED_SCRIPT_MESSAGE = (
    "The script starts an engine at module level. Its worker processes import the script again, so that would "
    'start engines without end. Put the code that starts the engine under `if __name__ == "__main__":`.'
)
UNNAMED_SCRIPT_MESSAGE = (
    "The program that starts the engine was read from standard input. Its worker processes must import it again and cannot. "
    'Save it in a file, with the code that starts the engine under `if __name__ == "__main__":`, and run that.'
)
# Time that a scheduler gets to leave its loop before it is killed, in seconds.
STOP_PATIENCE = 3.0
# Time that all processes together get to print their stacks, one after another, before they are killed.
STACKS_SECONDS = 2.0


class SchedulerProcesses:
    """One spawned process per tensor-parallel rank of this machine. They end with this process and with one another."""

    def __init__(
        self, server_args: Any, port_args: Any, target: SchedulerTarget | None = None
    ) -> None:
        leave_if_imported_by_worker()
        _refuse_unnamed_script()
        context = multiprocessing.get_context("spawn")
        models = ModelRegistry.assigned_paths()
        self._lock = threading.Lock()
        self._is_leaving = False
        self._is_stopped = False
        self._processes: list[BaseProcess] = []
        self._pulses: list[Counter] = []
        self._hung: dict[int, str] = {}  # why a process was ended, by pid
        self._timeout = effective_timeout(server_args.watchdog_timeout)
        for tp_rank in local_tp_ranks(server_args):
            pulse = context.RawValue("Q", 0)
            process = context.Process(
                target=_run_with_models,
                args=(
                    models,
                    pulse,
                    time.monotonic(),
                    target or run_scheduler,
                    server_args,
                    port_args,
                    tp_rank,
                    os.getpid(),
                ),
                name=f"sglang-scheduler-{tp_rank}",
            )
            process.start()
            self._processes.append(process)
            self._pulses.append(pulse)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes if process.pid is not None]

    def check_alive(self) -> None:
        """Raises RuntimeError when one of the processes has ended."""
        for process in self._processes:
            if process.exitcode is not None:
                raise RuntimeError(self._ending(process))

    def watch(self, on_death: Callable[[str], None]) -> None:
        """Call `on_death(reason)` in a thread of its own when a process ends that was not asked to, or hangs.

        For processes that are ready.
        """

        def wait() -> None:
            ended = wait_for_any([process.sentinel for process in self._processes])
            if self._is_leaving:
                return
            dead = [process for process in self._processes if process.sentinel in ended]
            for process in dead:
                process.join()  # the sentinel is a little ahead of the exit code
            reason = "; ".join(self._ending(process) for process in dead)
            if any(process.exitcode == WATCHDOG_EXIT_CODE for process in dead):
                # They hang in the same step; one of them is the reason.
                self._print_stacks([process.pid for process in dead])
            self.kill()  # the other ranks cannot go on alone
            on_death(reason)

        threading.Thread(target=wait, name="scheduler-watch", daemon=True).start()
        self.watch_pulses()

    def watch_pulses(self) -> None:
        """Kill a process whose pulse stands still for the time of `--watchdog-timeout`, after all have printed their stacks."""
        if self._timeout is None:
            return
        timeout, interval = self._timeout, look_interval(self._timeout)

        def look() -> None:
            stillness = [Stillness(interval) for _ in self._pulses]
            while not self._is_leaving:
                time.sleep(interval)
                for process, pulse, still in zip(
                    self._processes, self._pulses, stillness, strict=True
                ):
                    if still.look(pulse.value) >= timeout and not self._is_leaving:
                        self._end_hung(process, timeout)
                        return

        threading.Thread(target=look, name="pulse-watch", daemon=True).start()

    def _end_hung(self, process: BaseProcess, timeout: float) -> None:
        assert process.pid is not None, "it has been started"
        reason = (
            f"The process {process.name} (pid {process.pid}) made no progress for {timeout:g} s (--watchdog-timeout): it was "
            "stopped, or hangs in a native call. The log above shows its stacks."
        )
        logger.error("%s", reason)
        self._hung[process.pid] = reason
        self._print_stacks()
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)

    def _print_stacks(self, without: Container[int | None] = ()) -> None:
        """Have the processes print what their threads are doing, stopped ones too."""
        for process in self._processes:
            if process.pid is None or process.pid in without:
                continue
            logger.error("Stacks of %s (pid %d) follow", process.name, process.pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, STACKS_SIGNAL)
                os.kill(process.pid, signal.SIGCONT)
            time.sleep(STACKS_SECONDS / len(self._processes))

    def wait(self) -> str | None:
        """Block until all processes have ended; the reason when one failed, which ends the others too."""
        running = list(self._processes)
        while running:
            ended = wait_for_any([process.sentinel for process in running])
            for process in [process for process in running if process.sentinel in ended]:
                process.join()
                running.remove(process)
                if process.exitcode:
                    self.kill()
                    return self._ending(process)
        return None

    def stop(self) -> None:
        """End the processes and wait for them; safe to call twice. They have been asked to leave before."""
        with self._lock:
            if self._is_stopped:
                return
            self._is_stopped = self._is_leaving = True
        for process in self._processes:
            process.join(STOP_PATIENCE)
        self.kill()

    def mark_leaving(self) -> None:
        """From now on it is no accident when a process ends."""
        self._is_leaving = True

    def kill(self) -> None:
        """End the processes at once."""
        self._is_leaving = True
        for process in self._processes:
            if process.is_alive():
                kill_process_tree(process.pid)
        for process in self._processes:
            process.join()

    def _ending(self, process: BaseProcess) -> str:
        hung = self._hung.get(process.pid or 0)
        return hung or _ending(process)


def run_scheduler(server_args: Any, port_args: Any, tp_rank: int, parent_pid: int) -> None:
    """The real scheduler, or a rank that follows it; the import happens in the child, because it brings torch."""
    if tp_rank > 0:
        from sglang.srt.managers.follower_process import run_follower_process

        run_follower_process(server_args, port_args, tp_rank, parent_pid)
        return
    from sglang.srt.managers.scheduler_process import run_scheduler_process

    run_scheduler_process(server_args, port_args, tp_rank, parent_pid)


def _run_with_models(
    models: dict[str, str], pulse: Counter, began: float, target: SchedulerTarget, *args: Any
) -> None:
    """What every process runs: it knows the model classes that the user's program registered, by import path."""
    note_process_start(began)
    be_watched(pulse)
    ModelRegistry.adopt(models)
    target(*args)


def leave_if_imported_by_worker() -> None:
    """End this process when it is a worker that is still importing the user's script."""
    # Set by multiprocessing while a spawned child imports the main module; there is no public way to ask.
    if multiprocessing.current_process().__dict__.get("_inheriting", False):
        raise SystemExit(UNGUARDED_SCRIPT_EXIT_CODE)


def _refuse_unnamed_script() -> None:
    """Raises RuntimeError for `python - < script`: spawned processes would look for a file named <stdin>."""
    if vars(sys.modules["__main__"]).get("__file__") == "<stdin>":
        raise RuntimeError(UNNAMED_SCRIPT_MESSAGE)


def _ending(process: BaseProcess) -> str:
    code = process.exitcode
    if code == UNGUARDED_SCRIPT_EXIT_CODE:
        return UNGUARDED_SCRIPT_MESSAGE
    how = f"exit code {code}"
    if code == WATCHDOG_EXIT_CODE:
        how += " (a step made no progress for the time of --watchdog-timeout)"
    if code is not None and code < 0:
        how = f"signal {signal.Signals(-code).name}"
    hint = "; it may have run out of memory" if code == -signal.SIGKILL else ""
    return f"The process {process.name} (pid {process.pid}) ended with {how}{hint}. See the log above for the cause."
