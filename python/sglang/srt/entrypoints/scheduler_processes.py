"""Starts the scheduler processes of one server, watches them and ends them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.process import BaseProcess
from typing import Any

from sglang.srt.arg_groups.rank_place import local_tp_ranks
from sglang.srt.models.registry import ModelRegistry
from sglang.srt.utils.common import kill_process_tree

# (server_args, port_args, tp_rank, parent_pid) -> runs until the server ends
SchedulerTarget = Callable[[Any, Any, int, int], None]

# A child ends with this code when the user's script starts an engine while the child imports it.
UNGUARDED_SCRIPT_EXIT_CODE = 83
UNGUARDED_SCRIPT_MESSAGE = (
    "The script starts an engine at module level. Its worker processes import the script again, so that would "
    'start engines without end. Put the code that starts the engine under `if __name__ == "__main__":`.'
)
# Time that a scheduler gets to leave its loop before it is killed, in seconds.
STOP_PATIENCE = 3.0


class SchedulerProcesses:
    """One spawned process per tensor-parallel rank of this machine. They end with this process and with one another."""

    def __init__(
        self, server_args: Any, port_args: Any, target: SchedulerTarget | None = None
    ) -> None:
        leave_if_imported_by_worker()
        context = multiprocessing.get_context("spawn")
        models = ModelRegistry.assigned_paths()
        self._lock = threading.Lock()
        self._is_leaving = False
        self._is_stopped = False
        self._processes: list[BaseProcess] = []
        for tp_rank in local_tp_ranks(server_args):
            process = context.Process(
                target=_run_with_models,
                args=(
                    models,
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

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes if process.pid is not None]

    def check_alive(self) -> None:
        """Raises RuntimeError when one of the processes has ended."""
        for process in self._processes:
            if process.exitcode is not None:
                raise RuntimeError(_ending(process))

    def watch(self, on_death: Callable[[str], None]) -> None:
        """Call `on_death(reason)` in a thread of its own when a process ends that was not asked to."""

        def wait() -> None:
            ended = wait_for_any([process.sentinel for process in self._processes])
            if self._is_leaving:
                return
            dead = [process for process in self._processes if process.sentinel in ended]
            for process in dead:
                process.join()  # the sentinel is a little ahead of the exit code
            reason = "; ".join(_ending(process) for process in dead)
            self.kill()  # the other ranks cannot go on alone
            on_death(reason)

        threading.Thread(target=wait, name="scheduler-watch", daemon=True).start()

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
                    return _ending(process)
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
        for process in self._processes:
            if process.is_alive():
                kill_process_tree(process.pid)
        for process in self._processes:
            process.join()


def run_scheduler(server_args: Any, port_args: Any, tp_rank: int, parent_pid: int) -> None:
    """The real scheduler, or a rank that follows it; the import happens in the child, because it brings torch."""
    if tp_rank > 0:
        from sglang.srt.managers.follower_process import run_follower_process

        run_follower_process(server_args, port_args, tp_rank, parent_pid)
        return
    from sglang.srt.managers.scheduler_process import run_scheduler_process

    run_scheduler_process(server_args, port_args, tp_rank, parent_pid)


def _run_with_models(models: dict[str, str], target: SchedulerTarget, *args: Any) -> None:
    """What every process runs: it knows the model classes that the user's program registered, by import path."""
    ModelRegistry.adopt(models)
    target(*args)


def leave_if_imported_by_worker() -> None:
    """End this process when it is a worker that is still importing the user's script."""
    # Set by multiprocessing while a spawned child imports the main module; there is no public way to ask.
    if multiprocessing.current_process().__dict__.get("_inheriting", False):
        raise SystemExit(UNGUARDED_SCRIPT_EXIT_CODE)


def _ending(process: BaseProcess) -> str:
    code = process.exitcode
    if code == UNGUARDED_SCRIPT_EXIT_CODE:
        return UNGUARDED_SCRIPT_MESSAGE
    how = f"exit code {code}"
    if code is not None and code < 0:
        how = f"signal {signal.Signals(-code).name}"
    hint = "; it may have run out of memory" if code == -signal.SIGKILL else ""
    return f"The process {process.name} (pid {process.pid}) ended with {how}{hint}. See the log above for the cause."
