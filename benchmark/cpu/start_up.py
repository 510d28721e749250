"""How long things take to start, beside `import torch, transformers`: imports, `--help`, engine and server until ready.

python benchmark/cpu/start_up.py [--repeat 5] [--model-path DIR]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import records
from checkpoints import DEFAULT_CACHE, checkpoint
from servers import running_server

HERE = Path(__file__).resolve().parent

# name -> arguments of python; timed from start to exit
COMMANDS: dict[str, list[str]] = {
    "python -c pass": ["-c", "pass"],
    "import torch, transformers": ["-c", "import torch, transformers"],
    "import sglang": ["-c", "import sglang"],
    "from sglang import Engine": ["-c", "from sglang import Engine"],
    "sglang --help": ["-m", "sglang.cli.main", "--help"],
    "launch_server --help": ["-m", "sglang.launch_server", "--help"],
    "bench_serving --help": ["-m", "sglang.bench_serving", "--help"],
}


def main() -> None:
    args = parse_args()
    records.warn_if_busy()
    model = args.model_path or str(checkpoint("tiny-llama", args.cache_dir))
    record = records.Record.begin("cpu-start-up", model=Path(model).name, repeats=args.repeat)
    env = _environment()
    seconds: dict[str, list[float]] = {}
    for _ in range(args.repeat):  # in turns, so that a slow minute hits all alike
        for name, words in COMMANDS.items():
            seconds.setdefault(name, []).append(_time_command(words, env))
        seconds.setdefault("Engine, start to ready", []).append(_time_engine(model, env))
        with running_server(["--model-path", model, "--device", "cpu"], env) as (_, ready):
            seconds.setdefault("server, start to ready", []).append(ready)
    reference = statistics.median(seconds["import torch, transformers"])
    lines = [["what", "median s", "lowest", "highest", "of import torch, transformers"]]
    for name, values in seconds.items():
        median = statistics.median(values)
        figures = [f"{value:.3f}" for value in (median, min(values), max(values))]
        lines.append([name, *figures, f"{median / reference:.2f} x"])
    record.add_table("Seconds", lines)
    record.data = {"seconds": seconds}
    record.write(args.results)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--model-path", help="default: a tiny random Llama")
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--results", type=Path, default=records.RESULTS, metavar="FOLDER")
    return parser.parse_args()


def _time_command(words: list[str], env: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], env=env, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def _time_engine(model: str, env: dict[str, str]) -> float:
    """Until the engine says it is ready; its end is waited for, not counted."""
    started = time.perf_counter()
    command = [sys.executable, str(HERE / "engine_ready.py"), model]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None, "stdout is a pipe"
        line = process.stdout.readline()
        seconds = time.perf_counter() - started
    if line.strip() != "ready":
        raise RuntimeError(f"the engine did not start; the process ended with {process.returncode}")
    return seconds


def _environment() -> dict[str, str]:
    path = os.pathsep.join(
        filter(None, [str(records.ROOT / "python"), os.environ.get("PYTHONPATH")])
    )
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


if __name__ == "__main__":
    main()
