"""What a server's processes hold in memory: weights, KV cache in memory and reserved, and the rest.

    python benchmark/cpu/memory.py [--models demo qwen3-0.6b] [--requests 16]

The figure is PSS from /proc/PID/smaps_rollup, summed over the server and everything it starts: memory that processes share is counted once.
While the server starts it is sampled all the time, so a checkpoint that is held twice for a moment shows. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import records
from checkpoints import DEFAULT_CACHE, checkpoint
from servers import running_server

MIB = 2**20
ALLOWED_REST = 1024  # MiB beside weights and KV cache
POPULATED_MIB = 256  # `POPULATED_CACHE` of sglang.srt.platforms.cpu
SAMPLE_SECONDS = 0.05
PROMPT_LEN, OUTPUT_LEN = 512, 32
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


@dataclasses.dataclass(frozen=True)
class Sample:
    """Memory of all processes at one moment, in MiB. `by_process` holds the PSS of each, by a short name."""

    pss: float
    rss: float
    by_process: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Pools:
    """What the server says that it holds, in MiB."""

    weights: float
    kv_reserved: float
    kv_per_token: float

    @classmethod
    def of(cls, state: dict[str, Any]) -> Pools:
        usage = state["memory_usage"]
        reserved = usage["kvcache"] * 1024
        return cls(usage["weight"] * 1024, reserved, reserved / usage["token_capacity"])

    def row(self, sample: Sample, kv_tokens: int) -> dict[str, float]:
        """The split of `sample`. Tokens that were computed stay in the prefix cache, so their KV is in use."""
        # The engine asks for the first part of the pool's memory before anybody uses it.
        kv_used = min(max(kv_tokens * self.kv_per_token, POPULATED_MIB), self.kv_reserved)
        return {
            "PSS": sample.pss,
            "weights": self.weights,
            "KV in memory": kv_used,
            "rest": sample.pss - self.weights - kv_used,
            "KV reserved": self.kv_reserved,
            "sum of RSS": sample.rss,
        }


class Sampler:
    """The largest sample between entering and leaving."""

    def __init__(self) -> None:
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.largest = Sample(0.0, 0.0, {})

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(SAMPLE_SECONDS):
            now = take_sample()
            if now.pss > self.largest.pss:
                self.largest = now


def take_sample() -> Sample:
    """Of every process below this one."""
    pss = rss = 0.0
    by_process: dict[str, float] = {}
    for pid in records.family(os.getpid())[1:]:
        with contextlib.suppress(OSError):  # it has ended
            fields = read_rollup(Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii"))
            name = _process_name(Path(f"/proc/{pid}/cmdline").read_bytes())
            pss += fields["Pss"]
            rss += fields["Rss"]
            by_process[name] = by_process.get(name, 0.0) + fields["Pss"]
    return Sample(pss, rss, by_process)


def read_rollup(text: str) -> dict[str, float]:
    """The sizes of a smaps_rollup file in MiB."""
    lines = (line.split() for line in text.splitlines()[1:])
    return {words[0].rstrip(":"): int(words[1]) / 1024 for words in lines}


def _process_name(command: bytes) -> str:
    for mark, name in (
        (b"resource_tracker", "resource tracker"),
        (b"compile_worker", "grammar compiler"),
        (b"launch_server", "front"),
        (b"spawn_main", "scheduler"),
    ):
        if mark in command:
            return name
    return "other"


class Measurement:
    """One model: a server, its phases, and a row for each."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self._name = name
        self._num_requests = args.requests
        self._flags = ["--device", "cpu", "--max-running-requests", "16"]
        if name != "demo":
            self._flags += ["--model-path", str(checkpoint(name, args.cache_dir))]
        self.rows: list[tuple[str, dict[str, float]]] = []
        self.processes: dict[str, float] = {}

    def run(self, env: dict[str, str]) -> None:
        with contextlib.ExitStack() as stack:
            with Sampler() as start:
                url, _ = stack.enter_context(running_server(self._flags, env))
            pools = Pools.of(_get(f"{url}/server_info")["internal_states"][0])
            self._add("while starting, largest", pools.row(start.largest, 0))
            self._add("ready", pools.row(take_sample(), 0))
            with Sampler() as load:
                tokens = self._load(url)
            self._add("while answering, largest", pools.row(load.largest, tokens))
            self._add("after the answers", pools.row(take_sample(), tokens))
            self._grammar(url)
            settled = take_sample()
            self._add("after a grammar", pools.row(settled, tokens))
            self.processes = settled.by_process

    def _add(self, phase: str, row: dict[str, float]) -> None:
        self.rows.append((phase, row))
        print(self._name, phase, {name: round(value) for name, value in row.items()}, flush=True)

    def _load(self, url: str) -> int:
        """Prompts that share nothing, all at once; returns how many tokens were computed."""
        bodies = [
            {
                "input_ids": [(7 * i + 3 * j) % 997 + 5 for j in range(PROMPT_LEN)],
                "sampling_params": {"max_new_tokens": OUTPUT_LEN, "ignore_eos": True},
            }
            for i in range(self._num_requests)
        ]
        with ThreadPoolExecutor(self._num_requests) as pool:
            answers = list(pool.map(lambda body: _post(f"{url}/generate", body), bodies))
        metas = [answer["meta_info"] for answer in answers]
        return sum(m["prompt_tokens"] + m["completion_tokens"] - m["cached_tokens"] for m in metas)

    def _grammar(self, url: str) -> None:
        """A made-up vocabulary may hold no piece of JSON; the compiler runs all the same."""
        params = {"max_new_tokens": 32, "json_schema": json.dumps(SCHEMA)}
        body = {"input_ids": [5, 6, 7], "sampling_params": params}
        try:
            _post(f"{url}/generate", body)
        except urllib.error.HTTPError as error:
            print(f"{self._name}: refused: {error.read().decode()[:200]}")


def main() -> None:
    args = parse_args()
    if sys.platform != "linux":
        raise SystemExit("memory.py reads /proc, which only Linux has")
    record = records.Record.begin("cpu-memory", requests=f"{args.requests} x {PROMPT_LEN} tokens")
    data: dict[str, Any] = {}
    lines, shares = [], []
    for name in args.models:
        measurement = Measurement(name, args)
        measurement.run(_environment())
        lines += [[name, phase, *_shown(row)] for phase, row in measurement.rows]
        shares += [[name, who, f"{pss:.0f}"] for who, pss in measurement.processes.items()]
        data[name] = {"phases": dict(measurement.rows), "processes": measurement.processes}
    columns = [*next(iter(data.values()))["phases"]["ready"], f"rest <= {ALLOWED_REST}"]
    record.add_table("MiB, all processes", [["model", "when", *columns], *lines])
    record.add_table("MiB (PSS) at the end", [["model", "process", "PSS"], *shares])
    record.data = data
    record.write(args.results)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["demo", "qwen3-0.6b"])
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--results", type=Path, default=records.RESULTS, metavar="FOLDER")
    return parser.parse_args()


def _shown(row: dict[str, float]) -> list[str]:
    return [*(f"{value:.0f}" for value in row.values()), _verdict(row)]


def _verdict(row: dict[str, float]) -> str:
    return "yes" if row["rest"] <= ALLOWED_REST else "no"


def _environment() -> dict[str, str]:
    path = os.pathsep.join(
        filter(None, [str(records.ROOT / "python"), os.environ.get("PYTHONPATH")])
    )
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as reply:
        return json.load(reply)


def _post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=600) as reply:
        return json.load(reply)


if __name__ == "__main__":
    main()
