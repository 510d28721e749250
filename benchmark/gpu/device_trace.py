"""What a recorded trace says of decode steps: how long they are and where the device has nothing to do.

Reads the Chrome traces that the engine's own profiler writes. A replayed graph is known by its launch: all of its kernels carry one
correlation id, while other launches have one each. Without graphs, steps are told apart by the copy of the ids to the host, their last
work. Times are in microseconds.
"""

from __future__ import annotations

import collections
import gzip
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEVICE_KINDS = ("kernel", "gpu_memcpy", "gpu_memset")
# A launch that is followed by so many kernels is a graph's.
GRAPH_KERNELS = 8
_TO_HOST = "Memcpy DtoH"


@dataclass(frozen=True)
class Work:
    """A kernel or a copy on the device."""

    start: float
    end: float
    name: str
    correlation: int


@dataclass(frozen=True)
class Span:
    """The device's part of a step that is one piece: a replayed graph, or a whole step without one."""

    start: float
    end: float
    works: tuple[Work, ...]


@dataclass(frozen=True)
class Turn:
    """From the end of one span to the beginning of the next."""

    period: float  # from beginning to beginning
    gap: float  # idle behind the last copy to the host: between the last work of a step and the first of the next
    idle: float  # all that is idle in between
    works: tuple[Work, ...]  # sampling, copies, and filling the inputs of the next step


@dataclass(frozen=True)
class Steps:
    """What lies between the first and the last span of a trace."""

    turns: tuple[Turn, ...]
    inner_idle: tuple[float, ...]  # of each span
    busy_share: float
    num_works: float  # of a step

    def column(self, name: str) -> list[float]:
        return [getattr(turn, name) for turn in self.turns]

    def between(self) -> list[tuple[str, float, float]]:
        """(name, microseconds a step, times a step) of the work between spans, what takes longest first."""
        times: dict[str, list[float]] = collections.defaultdict(list)
        for turn in self.turns:
            for work in turn.works:
                times[work.name].append(work.end - work.start)
        count = len(self.turns)
        rows = [(name, sum(spent) / count, len(spent) / count) for name, spent in times.items()]
        return sorted(rows, key=lambda row: -row[1])


def read_works(path: Path) -> list[Work]:
    """All work on the device in the trace at `path` (.json or .json.gz), by time."""
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else path.open()
    with opened as file:
        events = json.load(file)["traceEvents"]
    works = [_work(event) for event in events if event.get("cat") in DEVICE_KINDS]
    return sorted(works, key=lambda work: (work.start, work.end))


def analyse(works: Sequence[Work], skip: int = 3) -> Steps:
    """Figures of the steps in `works`, without the first `skip`, which pay for the beginning of the recording.

    Raises ValueError when fewer than two spans are left.
    """
    spans = _spans(works)[skip:-1]  # the last may be cut off
    if len(spans) < 2:
        raise ValueError(
            f"{len(spans)} whole steps among {len(works)} pieces of device work; record more steps"
        )
    begin, end = spans[0].start, spans[-1].start
    inside = [work for work in works if begin <= work.start < end]
    turns = [_turn(a, b, works) for a, b in zip(spans, spans[1:], strict=False)]
    return Steps(
        tuple(turns),
        tuple(sum(_idle(span.works, span.start, span.end)) for span in spans),
        1.0 - sum(_idle(inside, begin, end)) / (end - begin),
        len(inside) / len(turns),
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * round(share * 1000) // 1000) - 1)]


def summary(steps: Steps) -> dict[str, float]:
    """One flat row, microseconds."""
    row = {"step_us": statistics.median(steps.column("period"))}
    for name in ("gap", "idle"):
        values = steps.column(name)
        row |= {f"{name}_p50": statistics.median(values), f"{name}_p90": quantile(values, 0.9)}
        row[f"{name}_max"] = max(values)
    row["graph_idle_us"] = statistics.median(steps.inner_idle)
    row["busy_share"] = steps.busy_share
    row["busy_us"] = steps.busy_share * statistics.fmean(steps.column("period"))
    row["works"] = steps.num_works
    return row


def _work(event: dict[str, Any]) -> Work:
    start = float(event["ts"])
    correlation = event.get("args", {}).get("correlation", -1)
    return Work(start, start + float(event.get("dur", 0.0)), event["name"], int(correlation))


def _spans(works: Sequence[Work]) -> list[Span]:
    launches: dict[int, list[Work]] = collections.defaultdict(list)
    for work in works:
        launches[work.correlation].append(work)
    launches.pop(-1, None)
    graphs = [found for found in launches.values() if len(found) >= GRAPH_KERNELS]
    if not graphs:
        graphs = _eager_steps(works)
    spans = [Span(group[0].start, max(w.end for w in group), tuple(group)) for group in graphs]
    return sorted(spans, key=lambda span: span.start)


def _eager_steps(works: Sequence[Work]) -> list[list[Work]]:
    """Pieces that end with copies to the host, the last of which may be unfinished."""
    steps: list[list[Work]] = [[]]
    for work in works:
        last = steps[-1]
        if last and last[-1].name.startswith(_TO_HOST) and not work.name.startswith(_TO_HOST):
            steps.append([])
        steps[-1].append(work)
    return steps


def _turn(one: Span, other: Span, works: Sequence[Work]) -> Turn:
    between = tuple(w for w in works if one.end <= w.start and w.end <= other.start)
    idle = sum(_idle(between, one.end, other.start))
    last = max((i for i, w in enumerate(between) if w.name.startswith(_TO_HOST)), default=None)
    if last is None:  # the copy is part of the span, or there is none
        gap = max(_idle(between, one.end, other.start), default=0.0)
    else:
        after = between[last + 1].start if last + 1 < len(between) else other.start
        gap = max(0.0, after - max(w.end for w in between[: last + 1]))
    return Turn(other.start - one.start, gap, idle, between)


def _idle(works: Sequence[Work], begin: float, end: float) -> list[float]:
    """The times from `begin` to `end` without any of `works`, which are sorted."""
    found, reached = [], begin
    for work in works:
        if work.start > reached:
            found.append(min(work.start, end) - reached)
        reached = max(reached, work.end)
    if end > reached:
        found.append(end - reached)
    return found
