"""What the host does in a decode step of the engine, and how long it then waits for the device: while it waits, the device is never idle for it.

    python benchmark/gpu/host_time.py --shape qwen3-0.6b --batch-size 64 [--modes greedy,json,...]

The scheduler's loop with the real worker runs in this process, without a profiler, whose records make the host slower than it is; tokenizing and
detokenizing are other processes' in a server and left out. Microseconds: medians and the worst tenth. A line of JSON per mode starts with `H`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from made_up_tokenizer import FIRST_WORD
from shapes import CONFIGS
from trace_gaps import MODES, write_model

from sglang.bench.list_mailbox import ListMailbox
from sglang.srt.managers.io_struct import TokenizedGenerateReq
from sglang.srt.sampling.sampling_params import SamplingParams

WARM_STEPS = 12


class Host:
    """A scheduler in this process, and the seconds that it waits."""

    def __init__(self, options: argparse.Namespace) -> None:
        from sglang.srt.managers.scheduler_builder import build_scheduler
        from sglang.srt.server_args import ServerArgs
        from sglang.srt.utils.hf_transformers_utils import get_tokenizer

        folder = write_model(options.shape, options.small, Path(tempfile.gettempdir()))
        self._options = options
        self._draw = random.Random(1)
        self._tokenizer = get_tokenizer(str(folder))
        self._vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
        self._mailbox = ListMailbox()
        args = ServerArgs(
            model_path=str(folder),
            load_format="dummy",
            dtype="bfloat16",
            context_length=9216,
            device=options.device,
            random_seed=0,
            log_level="warning",
            **json.loads(options.engine_args),
        )
        self._scheduler, _ = build_scheduler(args, self._mailbox)
        self._waited = 0.0
        # Private to the worker; a tool that takes it apart may look.
        platform = self._scheduler.worker._runner.platform  # type: ignore[attr-defined]
        platform.download = self._timed(platform.download)

    def _timed(self, download: Callable[..., Any]) -> Callable[..., Any]:
        """`Platform.download`, with the waits of what it returns added up."""

        def timed(*args: Any, **kwargs: Any) -> Callable[[], Any]:
            wait = download(*args, **kwargs)

            def timed_wait() -> Any:
                started = time.perf_counter()
                try:
                    return wait()
                finally:
                    self._waited += time.perf_counter() - started

            return timed_wait

        return timed

    def measure(self, mode: str) -> dict[str, Any]:
        """Of decode steps in which all requests take part."""
        self._submit(mode, WARM_STEPS + self._options.steps + 8)
        planner = self._scheduler.planner
        while len(planner.running) < self._options.batch_size or planner.prefilling:
            self._turn()
        for _ in range(WARM_STEPS):
            self._turn()
        steps, waits = [], []
        for _ in range(self._options.steps):
            self._waited, started = 0.0, time.perf_counter()
            self._turn()
            steps.append(time.perf_counter() - started)
            waits.append(self._waited)
        assert len(planner.running) == self._options.batch_size, "a request ended"
        while self._scheduler.has_work:
            self._turn()
        works = [step - wait for step, wait in zip(steps, waits, strict=True)]
        return {"mode": mode, **_figures("step", steps), **_figures("work", works)} | {
            "wait_p50": 1e6 * statistics.median(waits),
            "wait_p10": 1e6 * statistics.quantiles(waits, n=10)[0],
        }

    def _turn(self) -> None:
        self._scheduler.receive(0.0)
        self._scheduler.step()

    def _submit(self, mode: str, count: int) -> None:
        sampling, others = MODES[mode]
        params = SamplingParams(**{**sampling, "ignore_eos": True, "max_new_tokens": count})
        params.normalize(self._tokenizer)
        words = range(FIRST_WORD, self._vocab_size - 2)
        for number in range(self._options.batch_size):
            ids = self._draw.choices(words, k=self._options.input_len)
            request = TokenizedGenerateReq(
                rid=f"{mode}{number}", input_ids=ids, sampling_params=params, **others
            )
            self._mailbox.inbox.append(request)


def _figures(name: str, seconds: list[float]) -> dict[str, float]:
    return {
        f"{name}_p50": 1e6 * statistics.median(seconds),
        f"{name}_p90": 1e6 * statistics.quantiles(seconds, n=10)[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=sorted(CONFIGS), default="qwen3-0.6b")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--input-len", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--engine-args", default="{}", help="more arguments of Engine, as JSON")
    options = parser.parse_args()
    modes = options.modes.split(",")
    if unknown := sorted(set(modes) - set(MODES)):
        parser.error(f"--modes: {', '.join(unknown)} unknown; choose from {', '.join(MODES)}")
    host, rows = Host(options), []
    for mode in modes:
        rows.append(host.measure(mode))
        print("H " + json.dumps(rows[-1]), flush=True)
    print("\nmode        step p50     p90 | host p50     p90 | wait p50     p10   microseconds")
    for row in rows:
        columns = (f"{row[f'{key}_p50']:8.0f} {row[f'{key}_p90']:7.0f}" for key in ("step", "work"))
        print(
            f"{row['mode']:10} {' | '.join(columns)} | {row['wait_p50']:8.0f} {row['wait_p10']:7.0f}"
        )


if __name__ == "__main__":
    main()
