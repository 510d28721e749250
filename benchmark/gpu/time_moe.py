"""A layer of experts at the shapes of models: our kernels in a graph, plain torch, and what reading the weights or multiplying takes at least.

    python benchmark/gpu/time_moe.py [--shapes qwen3-30b-a3b] [--tokens 1 8 64 2048] [--weights plain channel block] [--parts]

Every call of a graph has other choices, so that the weights of one are not in the cache for the next. Microseconds of a layer.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from sglang.srt.layers.moe.expert_matrix import ExpertMatrix, Gate
from sglang.srt.layers.moe.experts import run_plain
from sglang.srt.layers.moe.fused_experts import run_fused, shape_of
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.moe.tiles import Shape, choose_tiles

# Rates of an H200, as `ceilings.py` finds them.
READ_RATE, MULTIPLY_RATE = 4.2e12, 680e12


@dataclass(frozen=True)
class Sizes:
    num_experts: int
    top_k: int
    hidden: int
    inner: int


SIZES = {
    "qwen3-30b-a3b": Sizes(128, 8, 2048, 768),
    "qwen3-30b-a3b tp2": Sizes(128, 8, 2048, 384),
    "mixtral-8x7b tp4": Sizes(8, 2, 4096, 3584),
    "gpt-oss-20b": Sizes(32, 4, 2880, 2880),
}
E4M3 = torch.float8_e4m3fn


def make_matrices(sizes: Sizes, weights: str) -> tuple[ExpertMatrix, ExpertMatrix]:
    return (
        _make_matrix(sizes.num_experts, 2 * sizes.inner, sizes.hidden, weights),
        _make_matrix(sizes.num_experts, sizes.hidden, sizes.inner, weights),
    )


def _make_matrix(num_experts: int, rows: int, columns: int, weights: str) -> ExpertMatrix:
    weight = torch.empty(num_experts, rows, columns, device="cuda", dtype=torch.bfloat16)
    for expert in weight:  # one at a time: the generator works in float32
        expert.normal_().mul_(columns**-0.5)
    if weights == "plain":
        return ExpertMatrix(weight)
    codes = torch.empty_like(weight, dtype=E4M3)
    for expert, code in zip(weight, codes, strict=True):
        code.copy_((expert.float() * columns**0.5 * 100).clamp(-448, 448))
    shape = (rows, 1) if weights == "channel" else (-(-rows // 128), -(-columns // 128))
    scale = torch.full((num_experts, *shape), columns**-0.5 / 100, device="cuda")
    return ExpertMatrix(codes, None, scale, None if weights == "channel" else (128, 128))


def make_routing(sizes: Sizes, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.rand(num_tokens, sizes.num_experts, device="cuda").argsort(1)[:, : sizes.top_k]
    weights = torch.rand(num_tokens, sizes.top_k, device="cuda").softmax(-1)
    return weights, ids.to(torch.int32).contiguous()


def floor(sizes: Sizes, num_tokens: int, used: float, weight_bytes: int) -> float:
    """Seconds for reading the used experts once, or for multiplying, whichever takes longer."""
    numbers = 3 * sizes.hidden * sizes.inner
    flops = 2 * numbers * num_tokens * sizes.top_k
    return max(used * numbers * weight_bytes / READ_RATE, flops / MULTIPLY_RATE)


def graph_seconds(calls: list[Callable[[], object]], rounds: int = 7) -> float:
    """Seconds of one of the calls, which are captured one behind the other."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    found = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) / 1e3 / len(calls))
    return statistics.median(found)


def eager_seconds(call: Callable[[], object], rounds: int = 5) -> float:
    call()
    torch.cuda.synchronize()
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def time_row(name: str, weights: str, num_tokens: int, shows_parts: bool) -> None:
    sizes = SIZES[name]
    first, second = make_matrices(sizes, weights)
    config = MoeRunnerConfig(num_experts=sizes.num_experts)
    x = torch.randn(num_tokens, sizes.hidden, device="cuda", dtype=torch.bfloat16)
    routings = [make_routing(sizes, num_tokens) for _ in range(4 if num_tokens > 256 else 16)]
    used = statistics.mean(len(ids.unique()) for _, ids in routings)
    calls = [lambda r=r: run_fused(x, first, second, *r, config) for r in routings]
    ours = graph_seconds(calls)
    plain = eager_seconds(lambda: run_plain(x, first, second, *routings[0], config))
    least = floor(sizes, num_tokens, used, first.weight.element_size())
    print(
        f"{name:20} {weights:8} {num_tokens:6} {used:8.1f} {least * 1e6:9.1f} {ours * 1e6:9.1f} "
        f"{least / ours:7.2f} {plain * 1e6:10.1f} {plain / ours:7.1f}",
        flush=True,
    )
    if shows_parts:
        shape = shape_of(first, second, config, num_tokens, sizes.top_k, x.dtype)
        time_parts(first, second, x, routings, shape)


def time_parts(
    first: ExpertMatrix,
    second: ExpertMatrix,
    x: torch.Tensor,
    routings: list[tuple[torch.Tensor, torch.Tensor]],
    shape: Shape,
) -> None:
    """Each launch by itself, of plain weights and of blocks."""
    from sglang.srt.layers.triton_ops.moe import single
    from sglang.srt.layers.triton_ops.moe.grouped import grouped_product
    from sglang.srt.layers.triton_ops.moe.sort import sort_by_expert
    from sglang.srt.layers.triton_ops.moe.total import Share, add_up

    tiles, gate, n, dtype = choose_tiles(shape), Gate("silu"), shape.num_choices, x.dtype
    print(f"    {tiles}")
    if first.kind == "channel":
        return
    hidden = torch.randn(n, shape.inner, device="cuda", dtype=dtype)
    parts: dict[str, list[Callable[[], object]]] = {}
    if tiles.is_single:
        parts["first"] = [
            lambda i=ids: single.single_first(x, None, first, gate, i, dtype, tiles.first)
            for _, ids in routings
        ]
        parts["second"] = [
            lambda w=w, i=i: single.single_second(
                hidden, None, second, i, Share(w, 1.0), dtype, tiles.second
            )
            for w, i in routings
        ]
    else:
        sort = [
            lambda i=ids: sort_by_expert(i, shape.num_local, tiles.block_m) for _, ids in routings
        ]
        blocks = [call() for call in sort]
        out = torch.randn(n, shape.hidden, device="cuda", dtype=dtype)
        parts["sort"] = list(sort)
        parts["first"] = [
            lambda b=b: grouped_product(x, None, first, gate, b, n, dtype, tiles.first)
            for b in blocks
        ]
        parts["second"] = [
            lambda b=b: grouped_product(hidden, None, second, None, b, n, dtype, tiles.second)
            for b in blocks
        ]
        parts["sum"] = [
            lambda w=w, i=i: add_up(out, i, shape.num_local, Share(w, 1.0), sums=True)
            for w, i in routings
        ]
    times = (f"{part} {graph_seconds(calls) * 1e6:.1f}" for part, calls in parts.items())
    print("    " + ", ".join(times), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=["qwen3-30b-a3b"], choices=[*SIZES])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 8, 64, 2048])
    kinds = ["plain", "channel", "block"]
    parser.add_argument("--weights", nargs="+", default=kinds, choices=kinds)
    parser.add_argument("--parts", action="store_true")
    options = parser.parse_args()
    print(
        f"{'shape':20} {'weights':8} {'tokens':>6} {'experts':>8} {'floor us':>9} {'ours us':>9} "
        f"{'reached':>7} {'torch us':>10} {'faster':>7}"
    )
    with torch.inference_mode():
        for name, weights in itertools.product(options.shapes, options.weights):
            for num_tokens in options.tokens:
                time_row(name, weights, num_tokens, options.parts)
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
