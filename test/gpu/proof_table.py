"""Runs the rows of kinds in processes, several kinds at a time, and prints a line for each; a process that dies or hangs costs one row."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from proof_kinds import Kind
from proof_rows import Row
from proof_worker import DECLINED, FAILED, OK, Outcome

_SCRIPT = str(Path(__file__).with_name("run_proof.py"))
_TAIL_LINES, _TAIL_CHARS = 12, 1500


@dataclasses.dataclass(frozen=True)
class Settings:
    """`row_limit`: seconds after which a row has failed. `folder` gets the checkpoints, `logs` what engines print."""

    device: str
    jobs: int
    row_limit: float
    folder: Path
    logs: Path


class Table:
    """All outcomes so far, by kind and row."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._outcomes: list[tuple[Kind, Row, Outcome]] = []
        self._tails: dict[
            tuple[str, str], str
        ] = {}  # of each way in which a kind failed, the first

    @property
    def num_failed(self) -> int:
        return sum(outcome.status == FAILED for _, _, outcome in self._outcomes)

    def run(self, plan: Sequence[tuple[Kind, list[Row]]]) -> None:
        """Prove all rows of a plan."""
        with concurrent.futures.ThreadPoolExecutor(self._settings.jobs) as pool:
            for done in [pool.submit(self._run_kind, kind, rows) for kind, rows in plan]:
                done.result()

    def print_summary(self) -> None:
        """A line for each kind: how its rows ended, by backend. What failed last."""
        by_kind: dict[str, dict[str, collections.Counter[str]]] = {}
        for kind, row, outcome in self._outcomes:
            counters = by_kind.setdefault(kind.name, collections.defaultdict(collections.Counter))
            counters[row.backend][outcome.status] += 1
        print()
        for name, backends in by_kind.items():
            cells = [f"{backend} {_counts(counter)}" for backend, counter in backends.items()]
            print(f"{name:18} {' | '.join(cells)}")
        for tail in self._tails.values():
            print(f"\n{tail}")

    def _run_kind(self, kind: Kind, rows: list[Row]) -> None:
        remaining = list(rows)
        while remaining:
            process = _Process(self._settings, kind, remaining)
            with process:
                for outcome in process.outcomes(len(remaining)):
                    self._note(kind, remaining.pop(0), outcome, process.tail())

    def _note(self, kind: Kind, row: Row, outcome: Outcome, tail: str) -> None:
        notes = f"  [{'; '.join(outcome.notes)}]" if outcome.notes else ""
        seconds = f"{outcome.seconds:5.1f} s" if outcome.seconds else ""
        line = (
            f"{kind.name:18} {row.name} {outcome.status:8} {outcome.words[:300]}  {seconds}{notes}"
        )
        with self._lock:
            self._outcomes.append((kind, row, outcome))
            print(line, flush=True)
            if outcome.status == FAILED:
                words = outcome.words[:600]
                last = f"--- {kind.name} {row.name}: {words}\n{tail}"
                self._tails.setdefault((kind.name, words), last)


class _Process:
    """One kind's worker, in a group of its own, so that its engines end with it."""

    def __init__(self, settings: Settings, kind: Kind, rows: list[Row]) -> None:
        self._limit = settings.row_limit
        self._log = settings.logs / f"{kind.name}.log"
        self._log.touch()
        command = [sys.executable, _SCRIPT, "--device", settings.device, "--worker", kind.name]
        command += ["--folder", str(settings.folder / kind.name), "--logs", str(self._log)]
        command += ["--rows", json.dumps([dataclasses.astuple(row) for row in rows])]
        threads = max(1, (os.cpu_count() or 1) // settings.jobs)
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self._log.open("ab"),
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
            start_new_session=True,
        )
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def outcomes(self, count: int) -> Iterator[Outcome]:
        """Of up to `count` rows, ending behind one at which the process died or hung."""
        for _ in range(count):
            try:
                line = self._lines.get(timeout=self._limit)
            except queue.Empty:
                yield Outcome(FAILED, f"no result within {self._limit:.0f} s")
                return
            if line is None:
                yield Outcome(FAILED, f"its process ended with status {self._process.wait()}")
                return
            yield Outcome(**json.loads(line))

    def tail(self) -> str:
        """The last lines of what the engines printed."""
        text = self._log.read_text(errors="replace").rstrip()
        return "\n".join(text.splitlines()[-_TAIL_LINES:])[-_TAIL_CHARS:]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _counts(counter: collections.Counter[str]) -> str:
    return " ".join(f"{counter[s]} {s}" for s in (OK, DECLINED, FAILED) if counter[s])
