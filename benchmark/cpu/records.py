"""What every measurement is filed with (machine, versions, commit, load), and how it is written to `benchmark/results`."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmark" / "results"
PACKAGES = ("torch", "transformers", "tokenizers", "numpy")
# Above this load average before a run, the figures say little.
QUIET_LOAD = 0.5


@dataclasses.dataclass
class Record:
    """One measurement: a name, where and how it was made, tables for people and data for programs."""

    name: str
    facts: dict[str, Any]
    tables: list[tuple[str, list[list[str]]]] = dataclasses.field(default_factory=list)
    data: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def begin(cls, name: str, **facts: Any) -> Record:
        """Collect what can be known before the run."""
        return cls(name, {**collect_facts(), **facts})

    def add_table(self, title: str, rows: list[list[str]]) -> None:
        """The first row holds the column names."""
        self.tables.append((title, rows))
        print(f"\n{title}\n\n{markdown_table(rows)}", flush=True)

    def write(self, folder: Path = RESULTS) -> Path:
        """Write `<date>-<name>.md` and `.json`; the path of the former."""
        self.facts["load average after"] = load_average()
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{datetime.now():%Y-%m-%d-%H%M}-{self.name}"
        path = folder / f"{stem}.md"
        path.write_text(self.markdown(), encoding="utf-8")
        content = {"name": self.name, "facts": self.facts, **self.data}
        (folder / f"{stem}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"\nwrote {path}")
        return path

    def markdown(self) -> str:
        facts = [f"- {name}: {value}" for name, value in self.facts.items()]
        parts = [f"# {self.name}", "\n".join(facts)]
        parts += [f"## {title}\n\n{markdown_table(rows)}" for title, rows in self.tables]
        return "\n\n".join(parts) + "\n"


def collect_facts() -> dict[str, Any]:
    """Date, command, machine, versions and commit."""
    versions = [f"{name} {_version(name)}" for name in PACKAGES]
    return {
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
        "command": shlex.join(["python", *_relative(sys.argv)]),
        "machine": f"{cpu_model()}, {num_cpus()} cores, {memory_gib():.0f} GiB",
        "python": platform.python_version(),
        "versions": ", ".join(versions),
        "commit": commit(),
        "load average before": load_average(),
    }


def markdown_table(rows: list[list[str]]) -> str:
    """Aligned, so that it also reads well as text."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def warn_if_busy() -> None:
    load = load_average()[0]
    if load > QUIET_LOAD:
        print(f"note: the load average is {load}; on a busy machine the figures say little")


def load_average() -> tuple[float, float, float]:
    one, five, fifteen = os.getloadavg()
    return round(one, 2), round(five, 2), round(fifteen, 2)


def num_cpus() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def limited_cores(count: int) -> Iterator[None]:
    """Keep this process and the children it starts meanwhile on `count` cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_model() -> str:
    names = _proc_fields("/proc/cpuinfo", "model name")
    return names[0] if names else platform.processor() or platform.machine()


def memory_gib() -> float:
    totals = _proc_fields("/proc/meminfo", "MemTotal")
    return int(totals[0].split()[0]) / 2**20 if totals else 0.0


def peak_rss_mib() -> float:
    """Sum over this process and its descendants of each one's largest resident size."""
    peaks = (_proc_fields(f"/proc/{pid}/status", "VmHWM") for pid in family(os.getpid()))
    return sum(int(peak[0].split()[0]) for peak in peaks if peak) / 1024


def commit() -> str:
    """Hash of the checkout, marked when files differ from it."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return f"{head}+changes" if _git("status", "--porcelain", "-uno") else head
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def family(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            for parent in _proc_fields(f"/proc/{entry.name}/status", "PPid"):
                parents.setdefault(int(parent), []).append(int(entry.name))
    found = [pid]
    for member in found:
        found += parents.get(member, [])
    return found


def _proc_fields(path: str, name: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # the process has ended
        return []
    pairs = (line.partition(":") for line in lines)
    return [value.strip() for key, _, value in pairs if key.strip() == name]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _relative(words: list[str]) -> list[str]:
    return [word.removeprefix(f"{ROOT}/") for word in words]
