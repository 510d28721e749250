"""The proof table of a machine: a model of every kind, on every attention backend that is installed, beside transformers.

    python test/gpu/run_proof.py [--jobs 6] [--only TEXT ...] [--dtypes float32] [--device cpu] [--logs FOLDER]

In float32 an engine must choose the tokens of transformers in float32 on the CPU, with its logprobs within 1e-4 of the largest logit. In bfloat16
it may err at most twice as far from them as transformers in bfloat16 does. Makes its own random checkpoints; needs torch, transformers, pyzmq,
msgspec, and Pillow for models that see. Prints a line for each engine; the exit status is 1 if one fails. `--device cpu` tries the script where there is
no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

import torch
from proof_kinds import KINDS, Kind
from proof_rows import BF16, F32, LEGEND, Row, rows_of
from proof_table import Settings, Table
from proof_worker import why_missing, work

from sglang.srt.arg_groups.attention_choice import installed_attention_packages

PACKAGES = {"triton": "triton", "flashinfer": "flashinfer", "fa3": "sgl_kernel"}


def main() -> int:
    options = parse()
    if options.worker:
        rows = [Row(*row) for row in json.loads(options.rows)]
        work(options.worker, Path(options.folder), options.device, rows, Path(options.logs))
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no GPU")
        return 2
    started = time.perf_counter()
    rows = plan(options, find_backends(options.device))
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(options.logs or folder)
        logs.mkdir(parents=True, exist_ok=True)
        settings = Settings(options.device, options.jobs, options.row_limit, Path(folder), logs)
        table = Table(settings)
        table.run(rows)
        table.print_summary()
    print(f"{time.perf_counter() - started:.0f} s in all; {table.num_failed} failed")
    return 1 if table.num_failed else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--jobs", type=int, default=6, help="kinds that are proven at a time")
    parser.add_argument("--only", nargs="+", default=[], help="rows with all of these in them")
    parser.add_argument("--dtypes", nargs="+", choices=(F32, BF16), help="on a CPU: float32")
    parser.add_argument("--row-limit", type=float, default=240.0, help="seconds for a row")
    parser.add_argument("--logs", default="", help="a folder for what the engines print")
    for name in ("--worker", "--folder", "--rows"):  # of the processes that this one starts
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def find_backends(device: str) -> list[str]:
    """The backends that can run here, those that may compile kernels for minutes last; prints the machine, and what cannot."""
    import transformers

    name = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} cores"
    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(LEGEND)
    if device == "cpu":
        return ["torch_native"]
    installed = installed_attention_packages()
    for backend, package in PACKAGES.items():
        if package not in installed:
            print(f"{backend}: declined ({package} is not installed)")
        elif backend != "triton":
            print(f"{backend} in float32: declined (it has no kernels for it)")
    found = [backend for backend, package in PACKAGES.items() if package in installed]
    return ["torch_native", *found]


def plan(options: argparse.Namespace, backends: list[str]) -> list[tuple[Kind, list[Row]]]:
    """Kinds with their rows; prints those that the engine does not have."""
    dtypes = options.dtypes or ([F32] if options.device == "cpu" else [F32, BF16])
    found = []
    for kind in KINDS:
        rows = [
            row
            for row in rows_of(kind, backends, dtypes, options.device)
            if all(text in f"{kind.name} {row.name}" for text in options.only)
        ]
        reason = why_missing(kind)
        if rows and reason:
            print(f"{kind.name}: declined ({reason})")
        elif rows:
            found.append((kind, rows))
    return found


if __name__ == "__main__":
    sys.exit(main())
