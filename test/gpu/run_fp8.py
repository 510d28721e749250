"""Prove and time eight-bit floating point on a GPU: kernels, scaled products, whole engines with fp8 weights and caches.

    python test/gpu/run_fp8.py [--no-timing] [--no-engines] [--device cpu]

Needs torch with CUDA and triton; engines also need transformers, pyzmq and msgspec, and make their own random checkpoints. Products on fp8 units are
compared with the same codes multiplied in float32, engines with the engine on the CPU. Prints tables; the exit status is 1 if a case fails. `--device cpu` compares
engines on the CPU with one another, to try the script where there is no GPU.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

import torch
from run_engine import make_checkpoint, prompts
from table import report, short

from sglang.srt.layers.quantization import fp8_math
from sglang.srt.layers.quantization.block_scales import scale_blocks
from sglang.srt.layers.quantization.fp8_math import (
    block_linear,
    channel_linear,
    expand_blocks,
    round_rows,
    round_weight,
)

DEVICE = "cuda"
E4M3 = torch.float8_e4m3fn
# Of the largest result: one rounding to the dtype, and the fp8 units' short sums.
BOUNDS = {torch.float32: 2e-3, torch.float16: 3e-3, torch.bfloat16: 1e-2}
SHAPES = [(4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (48, 64), (24, 40)]
ROWS = [1, 3, 16, 64, 1000]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--no-timing", dest="timing", action="store_false")
    parser.add_argument("--no-engines", dest="engines", action="store_false")
    parser.add_argument("--device", default=DEVICE, choices=(DEVICE, "cpu"))
    options = parser.parse_args()
    started = time.perf_counter()
    torch.manual_seed(0)
    failed = 0
    if options.device == DEVICE:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
        failed += check_rounding() + check_products() + check_blocks()
        if options.timing:
            print_timings()
    if options.engines:
        failed += check_engines(options.device)
    print(f"{time.perf_counter() - started:.0f} s in all; {failed} failed")
    return 1 if failed else 0


# --- correctness


@torch.inference_mode()
def check_rounding() -> int:
    """The kernel's codes and scales are torch's, bit for bit."""
    from sglang.srt.layers.triton_ops.fp8 import round_rows_kernel

    failed = 0
    for dtype in BOUNDS:
        for shape in [(1, 4096), (64, 4096), (7, 14336), (3, 40)]:
            x = (torch.randn(shape, device=DEVICE) * 20).to(dtype)
            codes, scales = round_rows_kernel(x, E4M3, None)
            expected, expected_scales = round_rows(x)
            same = torch.equal(codes.float(), expected.float())
            failed += report(f"round {shape} {short(dtype)}", float(not same), 0.0)
            failed += report(
                f"  scales {shape}", float((scales - expected_scales).abs().max()), 0.0
            )
    return failed


@torch.inference_mode()
def check_products() -> int:
    """Products on the units that the device has against the same codes in float32."""
    failed = 0
    for dtype, bound in BOUNDS.items():
        for out, inner in SHAPES:
            for scheme in ("channel", "tensor"):
                weight = torch.randn(out, inner, device=DEVICE) * inner**-0.5
                codes, scale = round_weight(weight, scheme)
                bias = torch.randn(out, device=DEVICE, dtype=dtype)
                worst = 0.0
                for rows in ROWS:
                    x = torch.randn(rows, inner, device=DEVICE, dtype=dtype)
                    given = None if rows != 16 else torch.full((1,), 0.01, device=DEVICE)
                    got = channel_linear(x, codes, scale, given, bias)
                    want = reference(x, codes, scale, given, bias)
                    worst = max(worst, relative(got, want))
                failed += report(f"product {out} x {inner} {scheme} {short(dtype)}", worst, bound)
    return failed


def reference(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    given: torch.Tensor | None,
    bias: torch.Tensor,
) -> torch.Tensor:
    """The path of devices without fp8 units, in float32."""
    held = fp8_math._can_multiply_codes
    fp8_math._can_multiply_codes = lambda codes, weight: False
    try:
        return channel_linear(x.float(), codes, scale, given, bias.float())
    finally:
        fp8_math._can_multiply_codes = held


@torch.inference_mode()
def check_blocks() -> int:
    """Expanding is exact, and so is the layer but for the product's own rounding."""
    failed = 0
    for dtype, bound in BOUNDS.items():
        for out, inner in [(4096, 4096), (2112, 7168), (200, 300)]:
            weight = torch.randn(out, inner, device=DEVICE).to(E4M3)
            scales = torch.rand(-(-out // 128), -(-inner // 128), device=DEVICE) + 0.5
            expected = scale_blocks(weight, scales, [128, 128], dtype)
            same = torch.equal(expand_blocks(weight, scales, [128, 128], dtype), expected)
            failed += report(f"expand {out} x {inner} {short(dtype)}", float(not same), 0.0)
            x = torch.randn(5, inner, device=DEVICE, dtype=dtype)
            want = x.double() @ expected.double().t()
            got = block_linear(x, weight, scales, [128, 128], None)
            failed += report(f"  layer {out} x {inner}", relative(got, want), bound)
    return failed


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).abs().max() / want.double().abs().max())


# --- timing


@torch.inference_mode()
def print_timings() -> None:
    """A product with rounding beside the bfloat16 one, in graphs, so that launches do not count."""
    print(f"\n{'layer':24} {'rows':>5} {'bf16 us':>8} {'fp8 us':>8} {'block us':>8}")
    for out, inner in SHAPES[:4]:
        print_times_of(out, inner)
        torch.cuda.empty_cache()


def print_times_of(out: int, inner: int) -> None:
    # Several weights, so that they do not stay in the cache of the GPU.
    count = max(1, 2**29 // (out * inner))
    plain = [torch.randn(out, inner, device=DEVICE, dtype=torch.bfloat16) for _ in range(count)]
    packed = [round_weight(weight, "channel") for weight in plain]
    blocks = torch.ones(-(-out // 128), -(-inner // 128), device=DEVICE)
    for rows in (1, 16, 64, 1024):
        x = torch.randn(rows, inner, device=DEVICE, dtype=torch.bfloat16)
        layers: list[list[Callable[[torch.Tensor], torch.Tensor]]] = [
            [partial(torch.nn.functional.linear, weight=w) for w in plain],
            [partial(_by_channel, weight=w, scale=s) for w, s in packed],
            [partial(_by_block, weight=w, scales=blocks) for w, _ in packed],
        ]
        times = [time_graph(partial(_run_all, kind, x)) / count for kind in layers]
        shown = " ".join(f"{seconds * 1e6:8.1f}" for seconds in times)
        print(f"{f'{out} x {inner}':24} {rows:5} {shown}", flush=True)


def _by_channel(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return channel_linear(x, weight, scale, None, None)


def _by_block(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return block_linear(x, weight, scales, [128, 128], None)


def _run_all(layers: list[Callable[[torch.Tensor], torch.Tensor]], x: torch.Tensor) -> None:
    for layer in layers:
        layer(x)


def time_graph(work: Callable[[], object], repeats: int = 10) -> float:
    """Seconds of one run."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / repeats / 1e3


# --- engines

NUM_TOKENS = 32
WEIGHTS = {"quantization": "fp8"}
E4M3_CACHE = {"kv_cache_dtype": "fp8_e4m3"}
NO_GRAPHS = {"disable_cuda_graph": True}
TORCH_NATIVE = {"attention_backend": "torch_native"}
# Name, flags of both engines, flags of the one that is looked at, the largest mean difference of logprobs. In float32 few codes fall on the other side of a
# step; in bfloat16 many do, and the weights of this checkpoint are random. A cache is read before it is rounded in Triton's prefill.
CASES: list[tuple[str, dict[str, str], dict[str, object], float]] = [
    ("plain", {}, {"dtype": "bfloat16"}, 0.05),
    ("fp8 weights", WEIGHTS, {}, 0.02),
    ("fp8 weights, no graphs", WEIGHTS, NO_GRAPHS, 0.02),
    ("fp8 weights, torch_native", WEIGHTS, TORCH_NATIVE, 0.02),
    ("fp8 weights, bfloat16", WEIGHTS, {"dtype": "bfloat16"}, 0.4),
    ("e4m3 cache", E4M3_CACHE, {}, 0.1),
    ("e4m3 cache, no graphs", E4M3_CACHE, NO_GRAPHS, 0.1),
    ("e4m3 cache, torch_native", E4M3_CACHE, TORCH_NATIVE, 0.02),
    ("e5m2 cache", {"kv_cache_dtype": "fp8_e5m2"}, {}, 0.2),
    ("fp8 weights and cache, bfloat16", {**WEIGHTS, **E4M3_CACHE}, {"dtype": "bfloat16"}, 0.5),
]


def check_engines(device: str) -> int:
    """Greedy tokens of an engine, decoded, beside what the engine on the CPU says in float32 to the same text in one prefill.

    A sum that differs in its last bits rounds to another code now and then, which grows from layer to layer; what must hold is
    that this stays below what the codes themselves cost, and that an engine loses no more by them than the CPU's does.
    """
    failed = 0
    print("\nengine: mean difference of logprobs")
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder))
        for name, both, own, bound in CASES:
            flags = {"device": device, "dtype": "float32", **both, **own}
            texts, got = decode(folder, **flags)
            want = read(folder, texts, **both)
            if both:
                plain = read(folder, texts)
                cost = distance(want, plain)
                failed += report(f"{name}: from no codes", distance(got, plain), 1.3 * cost)
                bound = max(bound, cost)
            failed += report(name, distance(got, want), bound)
    return failed


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().mean())


def decode(folder: str, **flags: object) -> tuple[list[list[int]], torch.Tensor]:
    """Prompts with their greedy continuations, and the logprobs of these [prompts, tokens]."""
    params = {"temperature": 0.0, "max_new_tokens": NUM_TOKENS, "ignore_eos": True}
    answers = generate(folder, prompts(), params, {"return_logprob": True}, **flags)
    texts = [
        prompt + answer["output_ids"] for prompt, answer in zip(prompts(), answers, strict=True)
    ]
    rows = [answer["meta_info"]["output_token_logprobs"] for answer in answers]
    return texts, torch.tensor([[entry[0] for entry in row] for row in rows])


def read(folder: str, texts: list[list[int]], **flags: object) -> torch.Tensor:
    """Logprobs of the last tokens of texts, on the CPU, in float32 if `flags` say nothing else."""
    ask = {"return_logprob": True, "logprob_start_len": 0}
    params = {"temperature": 0.0, "max_new_tokens": 1}
    flags = {"dtype": "float32", **flags, "device": "cpu"}
    answers = generate(folder, texts, params, ask, **flags)
    rows = [answer["meta_info"]["input_token_logprobs"][-NUM_TOKENS:] for answer in answers]
    return torch.tensor([[entry[0] for entry in row] for row in rows])


def generate(folder: str, ids: list[list[int]], params: dict, ask: dict, **flags: object) -> list:
    import sglang as sgl

    engine = sgl.Engine(
        model_path=folder,
        skip_tokenizer_init=True,
        log_level="error",
        random_seed=0,
        max_total_tokens=16384,
        **flags,
    )
    try:
        return engine.generate(input_ids=ids, sampling_params=params, **ask)
    finally:
        engine.shutdown()
        gc.collect()


if __name__ == "__main__":
    sys.exit(main())
