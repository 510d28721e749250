"""What the first long prompt of a length pays for its plan, and what is left of it when plans are made beforehand.

    python benchmark/gpu/time_prompt_plans.py

Each row is a process of its own: cuDNN keeps what it has loaded. Needs a Hopper GPU or newer and torch with cuDNN.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import torch

from sglang.srt.layers.attention.long_prompt import attend_long_prompt, suits_long_prompt
from sglang.srt.layers.attention.long_prompt_plans import LongPromptPlans, PromptShape

HEADS = {"0.6b": (16, 8), "8b": (32, 8)}
DIM = 128
LONGEST = 8192
LENGTHS = (8192, 5000, 2048, 8192)


def attend(shape: PromptShape, num_tokens: int) -> float:
    """Milliseconds of one call, as a model makes it."""
    widths = [shape.num_heads * DIM, shape.num_kv_heads * DIM, shape.num_kv_heads * DIM]
    qkv = torch.randn(num_tokens, sum(widths), dtype=torch.bfloat16, device="cuda")
    parts = [part.view(num_tokens, -1, DIM) for part in qkv.split(widths, dim=-1)]
    assert suits_long_prompt(parts[0]), "this GPU has no fused kernel for long prompts"
    torch.cuda.synchronize()
    started = time.perf_counter()
    with torch.inference_mode():
        attend_long_prompt(*parts, shape.scaling)
    torch.cuda.synchronize()
    return (time.perf_counter() - started) * 1e3


def prepare(shape: PromptShape, how: str) -> str:
    if how != "beforehand":
        return ""
    plans = LongPromptPlans([shape], LONGEST, torch.bfloat16, torch.device("cuda"))
    turns: list[float] = []
    while True:
        started = time.perf_counter()
        more = plans.make_next()
        torch.cuda.synchronize()
        turns.append(1e3 * (time.perf_counter() - started))
        if not more:
            break
        time.sleep(0.05)
    return f"{len(turns)} turns, the longest {max(turns):.0f} ms, the first {turns[0]:.1f} ms"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, metavar=("SHAPE", "HOW"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is None:
        for name in HEADS:
            for how in ("not at all", "beforehand"):
                subprocess.run([sys.executable, __file__, "--one", name, how], check=True)
        return 0
    name, how = args.one
    shape = PromptShape(*HEADS[name], DIM, DIM**-0.5)
    torch.zeros(1, device="cuda")
    did = prepare(shape, how)
    times = ", ".join(f"{n}: {attend(shape, n):.1f} ms" for n in LENGTHS)
    print(f"{name:5} prepared {how:12} {did}; first calls {times}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
