"""What a decode step costs besides the model: the scheduler's loop with the real worker, in this process.

    python benchmark/cpu/engine_overhead.py [--batch 1 8 32 64] [--waiting 0 10 100 1000 10000] [--canned]

`overhead` is the time of a whole step minus the model's own forward. With `--canned` the model's answer is recorded once
and replayed, so that its noise is gone. Waiting requests are held back either because every row is taken, or because the
KV cache is full while rows are free (then the planner looks at the head of the queue in every step).
"""

from __future__ import annotations

import argparse
import collections
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import records
from checkpoints import DEFAULT_CACHE, checkpoint, vocab_size

from sglang.bench.list_mailbox import ListMailbox
from sglang.srt.managers.io_struct import TokenizedGenerateReq
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import ServerArgs

if TYPE_CHECKING:
    from sglang.srt.managers.scheduler import Scheduler

MODEL = "tiny-llama"
CONTEXT_LEN = 65536
MIN_POOL_TOKENS = 256  # the engine refuses pools that are too small for any use
PROMPT_LEN = 16
WARMUP_STEPS = 10
SPARE_STEPS = 5  # the prefill, and the step that records the model's answer
PARTS = ("plan", "build", "sample", "commit", "rest")


class Stopwatch:
    """Sums the time spent in chosen methods of chosen objects."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Replace a bound method by one that is timed."""
        setattr(owner, method, self._timed(getattr(owner, method), name))

    def _timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - started

        return call


class Bench:
    """A scheduler with `batch` requests decoding and `waiting` more in its queue."""

    def __init__(self, args: argparse.Namespace, batch: int, waiting: int, full: str) -> None:
        self._args = args
        self._batch = batch
        self._waiting = waiting
        self._mailbox = ListMailbox()
        self._new_tokens = args.steps + WARMUP_STEPS + SPARE_STEPS
        # With a free row it is the memory that is full: a waiting prompt is longer than what is left for decoding.
        left = batch * self._new_tokens + 2 * args.page_size
        self._scheduler = self._build(
            rows=batch if full == "rows" else batch + 1, tokens=left + batch * PROMPT_LEN
        )
        self._rng = np.random.default_rng(0)
        self._submit("run", batch, PROMPT_LEN)
        while len(self._scheduler.planner.running) < batch:
            self._turn()
        self._submit("wait", waiting, PROMPT_LEN if full == "rows" else left + 1)
        for _ in range(WARMUP_STEPS):
            self._turn()
        self._stopwatch = Stopwatch()
        self._watch()

    def measure(self) -> dict[str, float]:
        """Milliseconds per step: the whole, the model, and the parts of the overhead (medians)."""
        samples: dict[str, list[float]] = collections.defaultdict(list)
        for _ in range(self._args.steps):
            self._stopwatch.seconds.clear()
            started = time.perf_counter()
            self._turn()
            whole = time.perf_counter() - started
            for name, seconds in _parts(whole, self._stopwatch.seconds).items():
                samples[name].append(1000 * seconds)
        planner = self._scheduler.planner
        assert len(planner.running) == self._batch, "the batch changed while it was measured"
        assert len(planner.waiting) == self._waiting, "the queue changed while it was measured"
        return {name: statistics.median(values) for name, values in samples.items()}

    def _build(self, rows: int, tokens: int) -> Scheduler:
        # Late: `--help` must not import torch.
        from sglang.srt.managers.scheduler_builder import build_scheduler

        server_args = ServerArgs(
            model_path=str(checkpoint(MODEL, self._args.cache_dir)),
            device="cpu",
            dtype="bfloat16",
            skip_tokenizer_init=True,
            max_running_requests=rows,
            max_total_tokens=max(tokens, MIN_POOL_TOKENS),
            page_size=self._args.page_size,
            context_length=CONTEXT_LEN,
            schedule_policy=self._args.schedule_policy,
            random_seed=0,
            log_level="error",
        )
        scheduler, _ = build_scheduler(server_args, self._mailbox)
        return scheduler

    def _watch(self) -> None:
        scheduler, watch = self._scheduler, self._stopwatch.watch
        # The seams inside the worker are private to it; a tool that takes it apart may look.
        model = scheduler.worker._runner.model  # type: ignore[attr-defined]
        if self._args.canned:
            self._can(model)
        watch(model, "forward", "model")
        watch(scheduler.worker, "forward", "forward")
        watch(scheduler.worker, "sample", "sample")
        watch(scheduler, "_plan", "plan")
        watch(scheduler, "_commit_oldest", "commit")

    def _can(self, model: Any) -> None:
        real = model.forward
        recorded: list[Any] = []

        def replay(*args: Any, **kwargs: Any) -> Any:
            if not recorded:
                recorded.append(real(*args, **kwargs))
            return recorded[0]

        model.forward = replay
        self._turn()

    def _turn(self) -> None:
        self._scheduler.receive(0.0)
        self._scheduler.step()

    def _submit(self, name: str, count: int, prompt_len: int) -> None:
        params = SamplingParams(
            temperature=0.0, max_new_tokens=self._new_tokens + 1, ignore_eos=True
        )
        params.normalize(None)
        ids = self._rng.integers(0, vocab_size(MODEL), prompt_len).tolist()
        for number in range(count):
            # Long prompts, which only wait, share one list: ten thousand of them must fit into memory.
            self._mailbox.inbox.append(
                TokenizedGenerateReq(
                    rid=f"{name}{number}",
                    input_ids=[number, *ids[1:]] if prompt_len == PROMPT_LEN else ids,
                    sampling_params=params,
                    stream=True,
                )
            )


def _parts(whole: float, seconds: dict[str, float]) -> dict[str, float]:
    model = seconds["model"]
    parts = {
        "plan": seconds["plan"],
        "build": seconds["forward"] - model,
        "sample": seconds["sample"],
        "commit": seconds["commit"],
    }
    rest = whole - model - sum(parts.values())
    return {"step": whole, "model": model, "overhead": whole - model, **parts, "rest": rest}


def main() -> None:
    args = parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(records.num_cpus()))
    records.warn_if_busy()
    record = records.Record.begin("cpu-engine-overhead", steps=args.steps, canned=args.canned)
    cases = [(batch, 0, "rows") for batch in args.batch]
    cases += [
        (args.waiting_batch, count, full) for full in ("rows", "memory") for count in args.waiting
    ]
    lines = [["batch", "waiting", "full", "step ms", "model", "overhead", *PARTS]]
    results = []
    for batch, waiting, full in cases:
        figures = Bench(args, batch, waiting, full).measure()
        results.append({"batch": batch, "waiting": waiting, "full": full, **figures})
        shown = [f"{figures[name]:.3f}" for name in ("step", "model", "overhead", *PARTS)]
        lines.append([str(batch), str(waiting), full if waiting else "-", *shown])
        print(" ".join(lines[-1]), flush=True)
    record.add_table("Milliseconds per decode step (medians)", lines)
    record.data = {"results": results}
    record.write(args.results)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--waiting", type=int, nargs="*", default=[10, 100, 1000, 10000])
    parser.add_argument("--waiting-batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--canned", action="store_true", help="replay the model's first answer")
    parser.add_argument("--page-size", type=int, default=1)
    parser.add_argument("--schedule-policy", default="fcfs")
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--results", type=Path, default=records.RESULTS, metavar="FOLDER")
    return parser.parse_args()


if __name__ == "__main__":
    main()
