"""How long the device waits between decode steps of the whole engine, with everything that a request may ask for.

    python benchmark/gpu/trace_gaps.py --shape qwen3-0.6b --batch-size 64

For each mode: seconds a step without recording, then the gaps in a trace of some steps, which the engine's own profiler records (device
activity only). Recording itself lengthens steps: the two step times stand side by side. A line of JSON per mode starts with `R`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from device_trace import analyse, read_works, summary
from made_up_tokenizer import FIRST_WORD, write_tokenizer
from shapes import CONFIGS, write_shape

LIMIT = 50.0  # microseconds
_TEXT_SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string"}},
    "required": ["text"],
}
# mode -> (sampling parameters, other arguments of a request)
MODES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "greedy": ({"temperature": 0.0}, {}),
    "sampled": ({"temperature": 0.8, "top_p": 0.9, "min_p": 0.05}, {}),
    "penalties": ({"temperature": 0.8, "frequency_penalty": 0.2, "presence_penalty": 0.1}, {}),
    "regex": ({"temperature": 0.8, "regex": "[a-z ]+~"}, {}),
    "json": ({"temperature": 0.8, "json_schema": json.dumps(_TEXT_SCHEMA)}, {}),
    "logprobs": ({"temperature": 0.0}, {"return_logprob": True, "top_logprobs_num": 5}),
    "stop": ({"temperature": 0.0, "stop": ["never said", "nor this"]}, {}),
    "stream": ({"temperature": 0.0, "stop": ["never said", "nor this"]}, {"stream": True}),
}
# Without a GPU, to see that the script runs.
_SMALL = dict(
    num_hidden_layers=2,
    hidden_size=64,
    intermediate_size=128,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=4096,
    bos_token_id=4094,
    eos_token_id=4095,
)


class Traffic:
    """An engine, and the requests that it decodes together."""

    def __init__(self, options: argparse.Namespace, traces: Path) -> None:
        import sglang

        self.options = options
        self.draw = random.Random(1)
        folder = write_model(options.shape, options.small, Path(tempfile.gettempdir()))
        self.vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
        # The engine writes traces below this folder only.
        os.environ["SGLANG_TORCH_PROFILER_DIR"] = str(traces)
        started = time.perf_counter()
        self.engine = sglang.Engine(
            model_path=str(folder),
            load_format="dummy",
            dtype="bfloat16",
            context_length=9216,
            device=options.device,
            random_seed=0,
            log_level=options.log_level,
            **json.loads(options.engine_args),
        )
        print(f"ready after {time.perf_counter() - started:.1f} s", flush=True)

    async def run(self, mode: str, count: int) -> float:
        """Seconds for one batch of `count` tokens each."""
        options = self.options
        words = range(FIRST_WORD, self.vocab_size - 2)
        prompts = [self.draw.choices(words, k=options.input_len) for _ in range(options.batch_size)]
        sampling, others = MODES[mode]
        params = {**sampling, "ignore_eos": True, "max_new_tokens": count}
        started = time.perf_counter()
        asked = [self._ask(prompt, dict(params), others) for prompt in prompts]
        found = await asyncio.gather(*asked)
        seconds = time.perf_counter() - started
        short = sum(1 for number in found if number < count)
        if short:  # a grammar may end
            print(f"  {mode}: {short} of {len(found)} answers ended early", flush=True)
        return seconds

    async def _ask(self, prompt: list[int], params: dict[str, Any], others: dict[str, Any]) -> int:
        answer = await self.engine.async_generate(
            input_ids=prompt, sampling_params=params, **others
        )
        if not isinstance(answer, dict):
            async for item in answer:  # noqa: B007  (the last one counts)
                pass
            answer = item
        return int(answer["meta_info"]["completion_tokens"])

    async def record(self, mode: str, delay: float, count: int, steps: int) -> Path:
        """The trace of `steps` steps, begun `delay` seconds after the requests were sent."""
        running = asyncio.ensure_future(self.run(mode, count))
        await asyncio.sleep(delay)
        manager = self.engine.tokenizer_manager
        activity = "GPU" if self.options.device == "cuda" else "CPU"
        await manager.start_profile(
            {
                "num_steps": steps,
                "activities": [activity],
                "with_stack": False,
                "record_shapes": False,
                "profile_prefix": mode,
            }
        )
        await running
        told = await manager.stop_profile()
        return Path(told.rpartition(" to ")[2])


async def measure(traffic: Traffic, mode: str) -> dict[str, Any]:
    options = traffic.options
    count = options.steps * 5
    await traffic.run(mode, 2)  # compiles a grammar, and kernels that the mode needs
    firsts, wholes = [], []
    for _ in range(options.repeat):
        firsts.append(await traffic.run(mode, 1))
        wholes.append(await traffic.run(mode, count + 1))
    first, whole = min(firsts), min(wholes)
    step = (whole - first) / count
    row = {
        "mode": mode,
        "shape": options.shape,
        "batch_size": options.batch_size,
        "step_us_unrecorded": step * 1e6,
        "tok_s": options.batch_size / step,
    }
    trace = await traffic.record(
        mode, first + 0.3 * (whole - first), count + 1, options.steps + options.skip
    )
    print(f"  trace of {mode}: {trace}", flush=True)
    works = read_works(trace)
    if not works:
        print("  no work on a GPU in this trace", flush=True)
        return row
    steps = analyse(works, options.skip)
    for name, spent, times in steps.between()[: options.top]:
        print(f"  {spent:8.1f} us a step between graphs, {times:5.1f} x  {name[:90]}")
    return row | summary(steps)


def write_model(shape: str, small: bool, root: Path) -> Path:
    """A folder with config and tokenizer."""
    folder = write_shape(shape, root / ("sglang-trace-small" if small else "sglang-trace-shapes"))
    config = json.loads((folder / "config.json").read_text())
    if small:
        config |= _SMALL
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "generation_config.json").write_text("{}")
    write_tokenizer(folder, config["vocab_size"], config["eos_token_id"])
    return folder


def print_table(rows: list[dict[str, Any]]) -> None:
    print(
        f"\n{'mode':10} {'tok/s':>8} {'step':>8} {'recorded':>8} | {'gap p50':>8} {'p90':>7} {'max':>8} | "
        f"{'idle p50':>8} {'p90':>7} {'max':>8} | {'in graph':>8} {'busy':>8} {'share':>6}   microseconds"
    )
    for row in rows:
        line = f"{row['mode']:10} {row['tok_s']:8.0f} {row['step_us_unrecorded']:8.0f} "
        if "gap_p50" in row:
            verdict = "" if row["gap_p90"] <= LIMIT else f"  over {LIMIT:.0f}"
            line += (
                f"{row['step_us']:8.0f} | {row['gap_p50']:8.1f} {row['gap_p90']:7.1f} {row['gap_max']:8.1f} | "
                f"{row['idle_p50']:8.1f} {row['idle_p90']:7.1f} {row['idle_max']:8.1f} | "
                f"{row['graph_idle_us']:8.1f} {row['busy_us']:8.0f} {row['busy_share']:6.1%}{verdict}"
            )
        print(line)
    print(
        "step: without recording; recorded: with it. gap: idle behind the last copy to the host, until the next step begins. idle: all "
        "of it between two graphs. busy: of a step; what `step` has beyond it is idle without recording, too."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=sorted(CONFIGS), default="qwen3-0.6b")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--input-len", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=40, help="steps of a trace")
    parser.add_argument("--skip", type=int, default=3, help="first steps of a trace to leave out")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--top", type=int, default=8, help="kernels between graphs to name")
    parser.add_argument("--traces", type=Path, help="folder for traces; default: a new one")
    parser.add_argument("--log-level", default="warning", help="of the engine")
    parser.add_argument("--engine-args", default="{}", help="more arguments of Engine, as JSON")
    options = parser.parse_args()
    modes = options.modes.split(",")
    if unknown := sorted(set(modes) - set(MODES)):
        parser.error(f"--modes: {', '.join(unknown)} unknown; choose from {', '.join(MODES)}")
    traces = options.traces or Path(tempfile.mkdtemp(prefix="sglang-gaps-"))
    rows: list[dict[str, Any]] = []
    traffic = Traffic(options, traces.resolve())

    async def run_all() -> None:
        await traffic.run("greedy", 2)
        # The first recording of a process prepares the profiler.
        await traffic.record("greedy", 0.0, options.steps, 3)
        for mode in modes:
            rows.append(await measure(traffic, mode))
            print("R " + json.dumps(rows[-1]), flush=True)

    try:
        asyncio.get_event_loop().run_until_complete(run_all())
    finally:
        print_table(rows)
        traffic.engine.shutdown()


if __name__ == "__main__":
    main()
