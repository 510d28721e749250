"""One-row products at the shapes of the measured models: torch's against ours at several tile shapes, in microseconds and TB/s.

Of gate and up also the product with the activation, in two kernels and in one. Weights rotate through more memory than the cache holds; times are of replayed graphs.
"""

from __future__ import annotations

import itertools

import torch

from sglang.srt.layers.triton_ops import few_rows
from sglang.srt.layers.triton_ops.gated import gated_activation

SHAPES = {
    "0.6b qkv": (4096, 1024),
    "0.6b o": (1024, 2048),
    "0.6b gate up": (6144, 1024),
    "0.6b down": (1024, 3072),
    "8b qkv": (6144, 4096),
    "8b o": (4096, 4096),
    "8b gate up": (28672, 4096),
    "8b down": (4096, 14336),
    "0.6b head": (151936, 1024),
}
TILES = list(itertools.product((1, 2, 4), (512, 1024, 2048), (4, 8)))


def graph_time(call, count: int) -> float:
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times = []
    for _ in range(5):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) * 1e3 / count)
    return min(times)


def main() -> None:
    for name, (num_out, width) in SHAPES.items():
        count = max(4, min(64, (1 << 29) // (num_out * width * 2)))
        weights = [
            torch.randn(num_out, width, device="cuda", dtype=torch.bfloat16) for _ in range(count)
        ]
        x = torch.randn(1, width, device="cuda", dtype=torch.bfloat16)
        want = x.double() @ weights[0].double().T
        found = few_rows.one_row_linear(x, weights[0])
        error = ((found.double() - want).norm() / want.norm()).item()
        size = num_out * width * 2

        def torch_call(x=x, weights=weights):
            for weight in weights:
                torch.nn.functional.linear(x, weight)

        def our_call(x=x, weights=weights):
            for weight in weights:
                few_rows.one_row_linear(x, weight)

        theirs, ours = graph_time(torch_call, count), graph_time(our_call, count)
        line = f"{name:14} torch {theirs:6.2f} us {size / theirs / 1e6:5.2f} TB/s   ours {ours:6.2f} us {size / ours / 1e6:5.2f} TB/s  error {error:.1e}  best:"
        found_tiles = []
        for rows, piece, warps in TILES:
            out = torch.empty(1, num_out, dtype=x.dtype, device="cuda")
            if rows * piece // (warps * 32) > 128 or piece > 2 * width:
                continue

            def tile_call(x=x, weights=weights, out=out, rows=rows, piece=piece, warps=warps):
                for weight in weights:
                    few_rows._one_row_kernel[(-(-num_out // rows),)](  # noqa: B023
                        x, weight, x, out, num_out, width, WIDTH=width, ROWS=rows, PIECE=piece,  # noqa: B023
                        AHEAD=0, BIAS=False, ACTIVATION=None, PDL=False, num_warps=warps,
                    )  # fmt: skip

            found_tiles.append((graph_time(tile_call, count), rows, piece, warps))
        for spent, rows, piece, warps in sorted(found_tiles)[:3]:
            line += f"  {spent:.2f} ({rows}x{piece} w{warps})"
        if name.endswith("gate up"):

            def two_call(x=x, weights=weights):
                for weight in weights:
                    gated_activation(few_rows.one_row_linear(x, weight), "silu")

            def gated_call(x=x, weights=weights):
                for weight in weights:
                    few_rows.one_row_gated_linear(x, weight, None, "silu")

            two, one = graph_time(two_call, count), graph_time(gated_call, count)
            line += f"  activated: in two {two:.2f}, in one {one:.2f}"
        print(line, flush=True)
        del weights


if __name__ == "__main__":
    main()
