"""Two GPUs beside one: same tokens in float32, close logprobs, and what a decode step costs in bfloat16.

    python test/gpu/run_tensor_parallel.py

Makes its own random checkpoint; needs two GPUs, torch with CUDA, transformers, pyzmq and msgspec. The exit status says pass or fail.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PROMPTS = [[5, 6, 7, 8, 9, 10], [100, 200, 300] * 200, [3]]
GREEDY = {"temperature": 0, "max_new_tokens": 32, "ignore_eos": True}
DRAWN = {**GREEDY, "temperature": 1.0, "top_p": 0.9}
TIMED_TOKENS = 256
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


def measure(model: Path, tp_size: int, dtype: str) -> tuple[list[dict], float]:
    """Answers, and milliseconds for each decode step of 32 requests."""
    import sglang

    engine = sglang.Engine(
        model_path=str(model),
        tp_size=tp_size,
        device="cuda",
        dtype=dtype,
        max_total_tokens=32768,
        skip_tokenizer_init=True,
        watchdog_timeout=60,
    )
    with engine:
        answers = engine.generate(
            input_ids=PROMPTS, sampling_params=GREEDY, return_logprob=True, logprob_start_len=0
        )
        engine.generate(input_ids=PROMPTS, sampling_params=DRAWN)
        long = {**GREEDY, "max_new_tokens": TIMED_TOKENS}
        started = time.perf_counter()
        engine.generate(input_ids=[[i, i + 1] for i in range(32)], sampling_params=long)
        return answers, (time.perf_counter() - started) / TIMED_TOKENS * 1000


def largest_difference(one: list[dict], two: list[dict]) -> float:
    worst = 0.0
    for a, b in zip(one, two, strict=True):
        for key in ("input_token_logprobs", "output_token_logprobs"):
            pairs = zip(a["meta_info"][key], b["meta_info"][key], strict=True)
            worst = max(worst, *(abs(x[0] - y[0]) for x, y in pairs if x[0] is not None), 0.0)
    return worst


def main() -> int:
    from models.tiny import write_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        model = write_checkpoint("qwen3-tied", Path(folder), **SHAPE)
        one, _ = measure(model, 1, "float32")
        two, _ = measure(model, 2, "float32")
        same = [a["output_ids"] for a in one] == [a["output_ids"] for a in two]
        worst = largest_difference(one, two)
        print(f"float32: tokens equal: {same}, largest difference of logprobs: {worst:.2e}")
        for tp_size in (1, 2):
            print(f"bfloat16 tp {tp_size}: {measure(model, tp_size, 'bfloat16')[1]:.2f} ms a step")
    return 0 if same and worst < 1e-3 else 1


if __name__ == "__main__":
    sys.exit(main())
