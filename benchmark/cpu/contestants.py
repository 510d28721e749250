"""One contestant in a process of its own: loads the model, runs workloads, writes the figures as JSON.

Started by compare_hf.py; by hand: `python benchmark/cpu/contestants.py sglang --model-path DIR --rows ttft tiny1 --out F`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, Protocol

import records
import workloads
from checkpoints import vocab_size
from workloads import ROWS, Contestant, Draw, Prompts

# What the engine must hold at once; a pool is reserved, not filled.
MAX_TOTAL_TOKENS = 24576
MAX_RUNNING = 32
CONTEXT_LEN = 2048
STATIC_BATCH_SIZES = (8, 32)


class Closable(Contestant, Protocol):
    def close(self) -> None: ...


class EngineContestant:
    """`sglang.Engine` with token ids in and out."""

    def __init__(self, model_path: str, threads: int, extra: dict[str, Any]) -> None:
        from sglang import Engine

        arguments = {
            "model_path": model_path,
            "device": "cpu",
            "dtype": "bfloat16",
            "skip_tokenizer_init": True,
            "max_total_tokens": MAX_TOTAL_TOKENS,
            "max_running_requests": MAX_RUNNING,
            "context_length": CONTEXT_LEN,
            "random_seed": 0,
        }
        self._engine = Engine(**{**arguments, **extra})

    def generate(self, prompts: Prompts, output_lens: list[int]) -> float:
        params = [
            {"temperature": 0.0, "max_new_tokens": count, "ignore_eos": True}
            for count in output_lens
        ]
        started = time.perf_counter()
        answers = self._engine.generate(input_ids=prompts, sampling_params=params)
        seconds = time.perf_counter() - started
        produced = [answer["meta_info"]["completion_tokens"] for answer in answers]
        assert produced == output_lens, f"asked for {output_lens}, got {produced}"
        return seconds

    serve = generate

    def close(self) -> None:
        self._engine.shutdown()


class TransformersContestant:
    """`transformers` with static batches."""

    def __init__(self, model_path: str, threads: int, extra: dict[str, Any]) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self._torch = torch
        self._model: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16)
        self._model.eval()

    def generate(self, prompts: Prompts, output_lens: list[int]) -> float:
        started = time.perf_counter()
        self._run_batch(prompts, max(output_lens))
        return time.perf_counter() - started

    def serve(self, prompts: Prompts, output_lens: list[int]) -> float:
        """Batches in order of arrival, each padded to its longest prompt and run to its longest output; the best size counts."""
        same = len({len(prompt) for prompt in prompts}) == 1
        # With prompts of one length no batch size wastes anything: one size is enough.
        sizes = [min(STATIC_BATCH_SIZES)] if same else STATIC_BATCH_SIZES
        return min(self._serve_in_batches(prompts, output_lens, size) for size in sizes)

    def _serve_in_batches(self, prompts: Prompts, output_lens: list[int], size: int) -> float:
        started = time.perf_counter()
        for first in range(0, len(prompts), size):
            self._run_batch(prompts[first : first + size], max(output_lens[first : first + size]))
        return time.perf_counter() - started

    def _run_batch(self, prompts: Prompts, output_len: int) -> None:
        torch = self._torch
        longest = max(map(len, prompts))
        padded = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=torch.tensor(padded),
                attention_mask=torch.tensor(mask),
                max_new_tokens=output_len,
                min_new_tokens=output_len,
                do_sample=False,
                pad_token_id=0,
            )
        assert output.shape[1] == longest + output_len, f"got shape {tuple(output.shape)}"

    def close(self) -> None:
        pass


CONTESTANTS: dict[str, type[EngineContestant] | type[TransformersContestant]] = {
    "transformers": TransformersContestant,
    "sglang": EngineContestant,
}


def run(args: argparse.Namespace) -> dict[str, float]:
    """Row -> figure, for the rows of this contestant's model."""
    with records.limited_cores(args.threads):
        return _run_rows(args)


def _run_rows(args: argparse.Namespace) -> dict[str, float]:
    model = Path(args.model_path).name
    contestant: Closable = CONTESTANTS[args.who](
        args.model_path, args.threads, json.loads(args.engine_args)
    )
    figures: dict[str, float] = {"start": time.time() - args.started} if args.started else {}
    sizes = workloads.QUICK if args.quick else workloads.FULL
    try:
        draw = Draw(vocab_size(model), args.seed)
        contestant.generate(draw.prompts(2, 16), [4, 4])  # warm-up
        for name in args.rows:
            measure = ROWS[name].measure
            if measure is not None:
                figures[name] = measure(contestant, draw, sizes)
                print(f"  {args.who} {name}: {figures[name]:.3f} {ROWS[name].unit}", flush=True)
        figures["memory"] = records.peak_rss_mib()
    finally:
        contestant.close()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("who", choices=list(CONTESTANTS))
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), required=True)
    parser.add_argument("--threads", type=int, default=records.num_cpus())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--started", type=float, help="time.time() when the process was started")
    parser.add_argument("--engine-args", default="{}", metavar="JSON")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    Path(args.out).write_text(json.dumps(run(args)), encoding="utf-8")


if __name__ == "__main__":
    main()
