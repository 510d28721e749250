"""Our engine beside transformers, on the same random weights, in one run.

    python benchmark/cpu/compare_hf.py                      # everything, medians of 3
    python benchmark/cpu/compare_hf.py --quick              # a look, a few minutes
    python benchmark/cpu/compare_hf.py --rows ttft decode1

Each contestant runs in a fresh process with the same number of threads; they take turns. Writes to benchmark/results.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import records
import workloads
from checkpoints import DEFAULT_CACHE, checkpoint
from contestants import CONTESTANTS
from workloads import ROWS

HERE = Path(__file__).resolve().parent

# contestant -> row -> one figure per repeat
Figures = dict[str, dict[str, list[float]]]


def main() -> None:
    args = parse_args()
    records.warn_if_busy()
    record = records.Record.begin(
        "cpu-compare-hf",
        threads=args.threads,
        repeats=args.repeat,
        sizes="quick" if args.quick else "full",
    )
    models = list(dict.fromkeys(ROWS[name].model for name in args.rows))
    for model in models:
        _make_checkpoint(model, args.cache_dir)
    figures: Figures = {who: {} for who in args.contestants}
    for repeat in range(args.repeat):
        for model in models:
            for who in args.contestants:
                _collect(figures[who], _run_contestant(args, who, model, repeat), args.rows)
    record.add_table("Medians (lowest - highest)", table(figures, args.rows))
    record.data = {"figures": figures, "sizes": vars(_sizes(args))}
    record.write(args.results)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--repeat", type=int, help="default: 3, with --quick 1")
    parser.add_argument("--quick", action="store_true", help="shorter workloads")
    parser.add_argument("--threads", type=int, default=records.num_cpus())
    parser.add_argument(
        "--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS)
    )
    parser.add_argument("--engine-args", default="{}", metavar="JSON", help="for sglang.Engine")
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--results", type=Path, default=records.RESULTS, metavar="FOLDER")
    args = parser.parse_args()
    args.repeat = args.repeat or (1 if args.quick else 3)
    return args


def table(figures: Figures, rows: list[str]) -> list[list[str]]:
    """One line per row; the ratio says how many times better sglang is than transformers."""
    names = list(figures)
    lines = [["workload", "unit", *names, "sglang is better by"]]
    for name in rows:
        row = ROWS[name]
        values = [figures[who].get(name, []) for who in names]
        medians = {who: statistics.median(v) for who, v in zip(names, values, strict=True) if v}
        ratio = "-"
        if {"sglang", "transformers"} <= medians.keys() and min(medians.values()) > 0:
            ours, theirs = medians["sglang"], medians["transformers"]
            ratio = f"{ours / theirs if row.more_is_better else theirs / ours:.2f} x"
        lines.append([row.label, row.unit, *map(_spread, values), ratio])
    return lines


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    shown = f"{statistics.median(values):.4g}"
    return shown if len(values) == 1 else f"{shown} ({min(values):.4g} - {max(values):.4g})"


def _collect(figures: dict[str, list[float]], new: dict[str, float], rows: list[str]) -> None:
    for name, value in new.items():
        if name in rows:
            figures.setdefault(name, []).append(value)


def _run_contestant(
    args: argparse.Namespace, who: str, model: str, repeat: int
) -> dict[str, float]:
    """One fresh process; the figures of the rows of `model`."""
    rows = [name for name in args.rows if ROWS[name].model == model]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        command = [sys.executable, str(HERE / "contestants.py"), who, "--rows", *rows]
        command += ["--model-path", str(args.cache_dir / model), "--threads", str(args.threads)]
        command += ["--seed", str(repeat), "--engine-args", args.engine_args, "--out", str(out)]
        command += ["--quick"] if args.quick else []
        print(f"{model}, repeat {repeat}: {who}, load {records.load_average()[0]}", flush=True)
        started = ["--started", str(time.time())]
        subprocess.run([*command, *started], env=_environment(args.threads), check=True)
        figures = json.loads(out.read_text(encoding="utf-8"))
    # Start and memory are those of the large model.
    own = {name for name in figures if ROWS[name].model == model}
    return {name: figures[name] for name in own}


def _sizes(args: argparse.Namespace) -> workloads.Sizes:
    return workloads.QUICK if args.quick else workloads.FULL


def _make_checkpoint(model: str, cache_dir: Path) -> None:
    """In a process of its own, so that this one stays small while others are measured."""
    command = [sys.executable, str(HERE / "checkpoints.py"), model, "--cache-dir", str(cache_dir)]
    subprocess.run(command, env=_environment(records.num_cpus()), check=True)
    assert checkpoint(model, cache_dir).is_dir()


def _environment(threads: int) -> dict[str, str]:
    path = os.pathsep.join(
        filter(None, [str(records.ROOT / "python"), os.environ.get("PYTHONPATH")])
    )
    settings = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **settings, "TRANSFORMERS_VERBOSITY": "error"}


if __name__ == "__main__":
    main()
