"""Prove mixtures of experts on a GPU: the kernels at the shapes of models, in graphs, and whole engines beside the engine on the CPU.

    python test/gpu/run_moe.py [--no-kernels] [--no-engines] [--device cpu]

Needs torch with CUDA and triton; engines also need transformers, pyzmq and msgspec, and make their own random checkpoints. Prints a table; the
exit status is 1 if a case fails. `--device cpu` compares engines on the CPU with one another, to try the script where there is no GPU.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

import torch
from run_engine import SHAPE, check_no_sync
from run_fp8 import decode, distance, read
from table import report, short

from sglang.srt.layers.moe.expert_matrix import ExpertMatrix
from sglang.srt.layers.moe.experts import run_plain
from sglang.srt.layers.moe.fused_experts import run_fused
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.moe.topk import TopK

DEVICE = "cuda"
# Of the largest result.
BOUNDS = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 1.5e-2}
# Experts, choices, model width, inner width.
SHAPES = {
    "qwen3-30b-a3b": (128, 8, 2048, 768),
    "mixtral-8x7b, a quarter": (8, 2, 4096, 3584),
    "gpt-oss-20b": (32, 4, 2880, 2880),
}
TOKENS = (1, 2, 4, 8, 17, 64, 256, 2048)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--no-kernels", dest="kernels", action="store_false")
    parser.add_argument("--no-engines", dest="engines", action="store_false")
    parser.add_argument("--device", default=DEVICE, choices=(DEVICE, "cpu"))
    options = parser.parse_args()
    started = time.perf_counter()
    torch.manual_seed(0)
    failed = 0
    if options.device == DEVICE:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
        if options.kernels:
            failed += check_products() + check_graphs()
    if options.engines:
        failed += check_engines(options.device)
    print(f"{time.perf_counter() - started:.0f} s in all; {failed} failed")
    return 1 if failed else 0


# --- kernels


def make_matrices(shape: str, dtype: torch.dtype) -> tuple[ExpertMatrix, ExpertMatrix]:
    num_experts, _, hidden, inner = SHAPES[shape]
    options: dict[str, Any] = {"device": DEVICE, "dtype": dtype}
    first = torch.randn(num_experts, 2 * inner, hidden, **options) * hidden**-0.5
    second = torch.randn(num_experts, hidden, inner, **options) * inner**-0.5
    return ExpertMatrix(first), ExpertMatrix(second)


def make_input(
    shape: str, num_tokens: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, weights and ids."""
    num_experts, top_k, hidden, _ = SHAPES[shape]
    x = torch.randn(num_tokens, hidden, device=DEVICE, dtype=dtype)
    routing = TopK(top_k)(x, torch.randn(num_tokens, num_experts, device=DEVICE))
    return x, routing.topk_weights, routing.topk_ids


@torch.inference_mode()
def check_products() -> int:
    """Against plain torch in float32 on the same numbers."""
    failed, config = 0, MoeRunnerConfig()
    for shape in SHAPES:
        for dtype, bound in BOUNDS.items():
            first, second = make_matrices(shape, dtype)
            wide = ExpertMatrix(first.weight.float()), ExpertMatrix(second.weight.float())
            for num_tokens in TOKENS:
                x, weights, ids = make_input(shape, num_tokens, dtype)
                got = run_fused(x, first, second, weights, ids, config).double()
                want = run_plain(x.float(), *wide, weights, ids, config).double()
                error = float((got - want).abs().max() / want.abs().max())
                name = f"{shape} {num_tokens} {short(dtype)}"
                failed += report(name, error, bound)
            del first, second, wide
            torch.cuda.empty_cache()
    return failed


@torch.inference_mode()
def check_graphs() -> int:
    """A graph that was captured with some choices computes others; nothing waits for the device."""
    failed, shape, dtype, config = 0, "qwen3-30b-a3b", torch.bfloat16, MoeRunnerConfig()
    first, second = make_matrices(shape, dtype)
    for num_tokens in (1, 8, 64, 600):
        buffers = make_input(shape, num_tokens, dtype)
        graph, out = capture(lambda b=buffers: run_fused(b[0], first, second, b[1], b[2], config))
        for kind in ("other choices", "one expert"):
            given = make_input(shape, num_tokens, dtype)
            if kind == "one expert":
                given[2].fill_(5)
            for buffer, value in zip(buffers, given, strict=True):
                buffer.copy_(value)
            graph.replay()
            want = run_fused(given[0], first, second, given[1], given[2], config)
            error = float((out - want).abs().max() / want.abs().max())
            failed += report(f"graph of {num_tokens}, {kind}", error, 0.0)
    return failed


def capture(work: Callable[[], torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    work()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = work()
    return graph, out


# --- engines

BF16 = {"dtype": "bfloat16"}
NO_GRAPHS = {"disable_cuda_graph": True}
FP8 = {"quantization": "fp8"}
# Name, flags of both engines, flags of the one that is looked at.
MODES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("float32", {}, {}),
    ("float32, no graphs", {}, NO_GRAPHS),
    ("float32, no overlap", {}, {"disable_overlap_schedule": True}),
    ("float32, chunks of 64", {}, {"chunked_prefill_size": 64}),
    ("bfloat16", BF16, {}),
    ("bfloat16, no graphs", BF16, NO_GRAPHS),
    ("fp8 weights", FP8, {}),
    ("fp8 weights, bfloat16, no graphs", FP8 | BF16, NO_GRAPHS),
]
FLOAT32_BOUND = 1e-3  # of the mean difference of logprobs
# What rounding may cost beside what it costs the engine on the CPU: a choice that is nearly a tie falls on another expert.
ROUNDING_BOUND = 1.5


def make_checkpoint(kind: str, folder: Path) -> None:
    """A random model whose router has clear favourites."""
    import transformers

    sizes: dict[str, dict[str, Any]] = {
        "Qwen3Moe": {"num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 256},
        "GptOss": {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 64},
        "Mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    }
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SHAPE | sizes[kind], dtype="float32")
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm, is_router = "norm" in name, "gate.weight" in name or "router" in name
            scale = 0.1 if is_norm else 0.5 if is_router else 0.06
            parameter.copy_(torch.randn_like(parameter) * scale + (1.0 if is_norm else 0.0))
    model.save_pretrained(folder)


def check_engines(device: str) -> int:
    """Greedy tokens of an engine beside what the engine on the CPU says in float32 to the same text in one prefill."""
    failed = 0
    print("\nengine: mean difference of logprobs from the CPU's in float32")
    for kind in ("Qwen3Moe", "GptOss", "Mixtral"):
        with tempfile.TemporaryDirectory() as folder:
            make_checkpoint(kind, Path(folder))
            for name, both, own in MODES:
                texts, got = decode(folder, **{"device": device, "dtype": "float32", **both, **own})
                want, bound = read(folder, texts), FLOAT32_BOUND
                if both:
                    bound = ROUNDING_BOUND * distance(read(folder, texts, **both), want)
                failed += report(f"{kind} {name}", distance(got, want), bound)
            if device == DEVICE:
                failed += check_capture(kind, folder)
        gc.collect()
    return failed


def check_capture(kind: str, folder: str) -> int:
    """Raises in the decode loop where anything waits, and where no graph was captured."""
    for without in (False, True):
        try:
            print(f"{kind} {check_no_sync(folder, 'triton', without)}", flush=True)
        except RuntimeError as error:
            print(f"{kind} FAILED decode step: {error}", flush=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
