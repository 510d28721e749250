"""Two GPUs beside one: same tokens in float32, close logprobs in bfloat16, graphs and peer memory on and off, no hidden synchronisation.

    python test/gpu/run_tensor_parallel.py [--ranks 4]

Makes its own random checkpoint; needs as many GPUs, torch with CUDA, transformers, pyzmq and msgspec. Prints a table; the exit status says
pass or fail. `--device cpu` runs the same on processes, to try the script itself.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).resolve().parents[1]),
    str(Path(__file__).resolve().parents[2] / "python"),
]

PROMPTS = [[5, 6, 7, 8, 9, 10], [100, 200, 300] * 200, [3], list(range(7, 90))]
GREEDY = {"temperature": 0, "max_new_tokens": 32, "ignore_eos": True}
DRAWN = {**GREEDY, "temperature": 1.0, "top_p": 0.9}
SHAPE = dict(
    vocab_size=4096,
    hidden_size=1024,
    intermediate_size=2048,
    num_hidden_layers=8,
    num_attention_heads=16,
    num_key_value_heads=4,
    head_dim=64,
    max_position_embeddings=4096,
)
WAYS = {
    "graphs, peer memory": {},
    "graphs, NCCL": {"disable_custom_all_reduce": True},
    "no graphs, peer memory": {"disable_cuda_graph": True},
    "no graphs, NCCL": {"disable_cuda_graph": True, "disable_custom_all_reduce": True},
}
BOUNDS = {"float32": 1e-3, "bfloat16": 0.3}  # of logprobs, while both have chosen the same tokens
DECODE_STEPS = 4  # launched while synchronising is an error


def measure(
    model: Path, device: str, tp_size: int, dtype: str, **flags
) -> tuple[list[dict], float]:
    """Answers, and milliseconds for each decode step of 32 requests."""
    import sglang

    engine = sglang.Engine(
        model_path=str(model),
        tp_size=tp_size,
        device=device,
        dtype=dtype,
        max_total_tokens=32768,
        skip_tokenizer_init=True,
        watchdog_timeout=60,
        cuda_graph_max_bs=32,
        log_level="info",
        **flags,
    )
    timed = 256 if device == "cuda" else 8
    with engine:
        answers = engine.generate(
            input_ids=PROMPTS, sampling_params=GREEDY, return_logprob=True, logprob_start_len=0
        )
        answers += engine.generate(
            input_ids=PROMPTS[:1], sampling_params=GREEDY, return_logprob=True
        )
        engine.generate(input_ids=PROMPTS, sampling_params=DRAWN)
        prompts = [[i, i + 1] for i in range(32)]
        engine.generate(input_ids=prompts, sampling_params={**GREEDY, "max_new_tokens": 4})
        started = time.perf_counter()
        engine.generate(input_ids=prompts, sampling_params={**GREEDY, "max_new_tokens": timed})
        return answers, (time.perf_counter() - started) / timed * 1000


def largest_difference(one: list[dict], two: list[dict]) -> float:
    """Of logprobs of the prompts, and of the tokens up to the first that differs."""
    worst = 0.0
    for a, b in zip(one, two, strict=True):
        pairs = list(zip(a["output_ids"], b["output_ids"], strict=True))
        same = next((i for i, (x, y) in enumerate(pairs) if x != y), len(pairs))
        for key, count in (("input_token_logprobs", None), ("output_token_logprobs", same)):
            left, right = (x["meta_info"].get(key, [])[:count] for x in (a, b))
            for x, y in zip(left, right, strict=True):
                worst = max(worst, abs(x[0] - y[0])) if x[0] is not None else worst
    return worst


def compare(model: Path, device: str, ranks: int) -> bool:
    """A row for every way; all of them must give what one rank gives."""
    passed = True
    for dtype, bound in BOUNDS.items():
        one, step = measure(model, device, 1, dtype)
        print(f"{dtype:9} tp 1  {'':24}      decode of 32: {step:6.2f} ms a step", flush=True)
        for name, flags in WAYS.items():
            several, step = measure(model, device, ranks, dtype, **flags)
            same = sum(
                a["output_ids"] == b["output_ids"] for a, b in zip(one, several, strict=True)
            )
            worst = largest_difference(one, several)
            right = worst <= bound and (dtype != "float32" or same == len(one))
            passed &= right
            print(
                f"{dtype:9} tp {ranks}  {name:24} {'ok  ' if right else 'FAIL'} "
                f"decode of 32: {step:6.2f} ms a step, equal texts {same}/{len(one)}, "
                f"largest difference of logprobs {worst:.1e}",
                flush=True,
            )
    return passed


def run_rank(rank: int, ranks: int, model: str, url: str, device: str, flags: dict, said) -> None:
    """One rank without a scheduler; puts what it found, or the reason why not, into the queue `said`."""
    try:
        said.put((rank, _decode_without_waiting(rank, ranks, model, url, device, flags)))
    except Exception:
        said.put((rank, "FAIL " + traceback.format_exc()))


def _decode_without_waiting(
    rank: int, ranks: int, model: str, url: str, device: str, flags: dict
) -> str:
    from sglang.srt.arg_groups.rank_place import RankPlace
    from sglang.srt.distributed import get_tp_group
    from sglang.srt.managers.scheduler_builder import load_runner
    from sglang.srt.model_executor.parallel_worker import (
        FollowerWorker,
        LeaderWorker,
        open_follower_channel,
        open_leader_channel,
    )
    from sglang.srt.model_executor.worker import TpWorker
    from sglang.srt.server_args import ServerArgs

    args = ServerArgs(
        model_path=model,
        device=device,
        dtype="bfloat16",
        tp_size=ranks,
        max_total_tokens=16384,
        skip_tokenizer_init=True,
        cuda_graph_max_bs=16,
        **flags,
    )
    place = RankPlace(ranks, rank, ranks, rank, url)
    runner = load_runner(args, place)[-1]
    is_gpu = device == "cuda"
    has = {
        "graphs": (runner.graphs is not None, "disable_cuda_graph"),
        "peer memory": (get_tp_group().peer_memory is not None, "disable_custom_all_reduce"),
    }
    facts = ", ".join(f"{name} {'on' if is_on else 'off'}" for name, (is_on, _) in has.items())
    if any(is_on != (is_gpu and flag not in flags) for is_on, flag in has.values()):
        raise RuntimeError(f"{facts} with {flags}")
    if rank == 0:
        leader = LeaderWorker(TpWorker(runner, seed=0), open_leader_channel(place))
        _lead(leader, is_gpu)
        leader.close()
    else:
        follower, channel = FollowerWorker(runner), open_follower_channel(place)
        _follow(follower, channel, is_gpu)
        follower.close()
    return facts


def _lead(worker, is_gpu: bool) -> None:
    from sglang.srt.model_executor.static_batch import StaticBatch

    batch = StaticBatch(worker, 8, 256)
    batch.extend([[5 + i] * 16 for i in range(8)]).result()
    for _ in range(3):
        batch.decode().result()
    with _no_synchronisation(is_gpu):
        steps = [batch.decode() for _ in range(DECODE_STEPS)]
    for step in steps:
        step.result()


def _follow(worker, channel, is_gpu: bool) -> None:
    """The first plans, a prefill and three decodes, may still load kernels."""
    count = 0
    while (frame := channel.receive()) is not None:
        count += 1
        with _no_synchronisation(is_gpu and count > 4):
            worker.carry_out(frame)
    assert count == 4 + DECODE_STEPS, f"{count} plans came"


class _no_synchronisation:
    """Inside, every call that waits for the device is an error."""

    def __init__(self, is_on: bool) -> None:
        self._is_on = is_on

    def __enter__(self) -> None:
        self._set("error")

    def __exit__(self, *error: object) -> None:
        self._set("default")

    def _set(self, mode: str) -> None:
        if self._is_on:
            import torch

            torch.cuda.set_sync_debug_mode(mode)


def check_no_sync(model: Path, device: str, ranks: int, flags: dict) -> bool:
    """Launch decode steps on every rank with torch raising on every synchronising call."""
    context = multiprocessing.get_context("spawn")
    said = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        places = [
            (rank, ranks, str(model), f"file://{folder}/ranks", device, flags, said)
            for rank in range(ranks)
        ]
        processes = [context.Process(target=run_rank, args=place) for place in places]
        for process in processes:
            process.start()
        try:
            found = dict(said.get(timeout=180) for _ in processes)
        except Exception as error:
            found = {0: f"FAIL no word from a rank: {type(error).__name__}"}
        for process in processes:
            process.join(30)
            process.kill()
    passed = len(set(found.values())) == 1 and len(found) == ranks
    passed &= not any(text.startswith("FAIL") for text in found.values())
    text = found[0] if passed else found
    print(
        f"no synchronisation in {DECODE_STEPS} launched steps: {'ok' if passed else 'FAIL'} {text}"
    )
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    from models.tiny import write_checkpoint

    small = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, head_dim=16)
    shape = SHAPE if options.device == "cuda" else {**SHAPE, **small}
    with tempfile.TemporaryDirectory() as folder:
        model = write_checkpoint("qwen3-tied", Path(folder), **shape)
        passed = True
        for flags in WAYS.values():
            passed &= check_no_sync(model, options.device, options.ranks, flags)
        passed &= compare(model, options.device, options.ranks)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
