"""Find the best tiles for a layer of experts and write them to `layers/moe/tuned_tiles.py`.

    python benchmark/gpu/tune_moe.py [--shapes qwen3-30b-a3b] [--tokens 1 4 8 ...] [--weights plain] [--minutes 20] [--dry-run]

Tries both products apart, for the sizes of blocks around the rule's, each in a graph with several routings. The candidates of a size are compiled
together. Once the minutes are over, other numbers of tokens get the rule's tiles. Every candidate is compared with the rule's result, so that a wrong kernel
cannot win.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace

import torch
import triton
from time_moe import SIZES, Sizes, graph_seconds, make_matrices, make_routing
from tuned_table import write_table

from sglang.srt.layers.moe import tuned_tiles
from sglang.srt.layers.moe.expert_matrix import ExpertMatrix
from sglang.srt.layers.moe.fused_experts import run_fused, shape_of
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
from sglang.srt.layers.moe.tiles import Shape, Tile, Tiles, rule_tiles
from sglang.srt.model_executor.kernel_rehearsal import KernelRehearsal

# What has most to gain first: at few tokens the rule reads at the memory's rate.
TOKENS = (8192, 4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1)
BLOCKS = (16, 32, 64, 128)
# What a graph runner pads a step to may have other choices: a result within this of the largest is the same.
SAME = 2e-2


@dataclass
class Found:
    tiles: Tiles
    seconds: float


class Search:
    """The best tiles of one layer and number of tokens."""

    def __init__(self, sizes: Sizes, weights: str, num_tokens: int, deadline: float) -> None:
        self._matrices: tuple[ExpertMatrix, ExpertMatrix] = make_matrices(sizes, weights)
        self._config = MoeRunnerConfig(num_experts=sizes.num_experts)
        self._x = torch.randn(num_tokens, sizes.hidden, device="cuda", dtype=torch.bfloat16)
        self._routings = [make_routing(sizes, num_tokens) for _ in range(4)]
        self._deadline = deadline
        self.shape: Shape = shape_of(
            *self._matrices, self._config, num_tokens, sizes.top_k, self._x.dtype
        )
        self._rule = rule_tiles(self.shape)
        self._want = self._call(self._rule, 0)().float()

    def run(self) -> Found:
        """Starts from the rule; changes the first product, then the second, for each size of block."""
        best = self._measure(self._rule)
        assert best is not None, f"the rule's own tiles do not run: {self._rule}"
        for block_m in self._block_sizes():
            if time.perf_counter() > self._deadline:
                break
            start, tiles = self._start(block_m), [*_candidates(block_m, self.shape)]
            self._compile(start, tiles)
            mine = self._measure(start)
            for which, tile in itertools.product(("first", "second"), tiles):
                if time.perf_counter() > self._deadline:
                    break
                base = start if mine is None else mine.tiles
                mine = _better(mine, self._measure(replace(base, **{which: tile})))
            best = _better(best, mine) or best
        return best

    def _compile(self, start: Tiles, tiles: list[Tile]) -> None:
        """The kernels of all candidates, together."""
        rehearsal = KernelRehearsal()
        with rehearsal.pretend():
            for which, tile in itertools.product(("first", "second"), tiles):
                self._call(replace(start, **{which: tile}), 0)()
        seconds = rehearsal.compile(self._x.device)
        print(f"  blocks of {start.block_m}: {2 * len(tiles)} tiles, compiled in {seconds:.1f} s")

    def _block_sizes(self) -> list[int]:
        """The rule's and its neighbours; single choices where they hardly meet."""
        average = self.shape.num_choices / self.shape.num_experts
        sizes = [m for m in BLOCKS if average / 8 <= m <= max(16.0, 2 * average)] or [BLOCKS[-1]]
        return ([1] if average <= 1 else []) + sizes

    def _start(self, block_m: int) -> Tiles:
        if block_m == self._rule.block_m:
            return self._rule
        if block_m == 1:
            return Tiles(1, Tile(2, 512, 1, 4, 1), Tile(2, 512, 1, 4, 1))
        return Tiles(block_m, Tile(32, 64, 1, 4, 3), Tile(64, 64, 1, 4, 3))

    def _call(self, tiles: Tiles, index: int) -> Callable[[], torch.Tensor]:
        first, second = self._matrices
        weights, ids = self._routings[index]
        return lambda: run_fused(self._x, first, second, weights, ids, self._config, tiles)

    def _measure(self, tiles: Tiles) -> Found | None:
        """None where the tiles do not fit the device or give something else."""
        try:
            got = self._call(tiles, 0)().float()
            if (got - self._want).abs().max() > SAME * self._want.abs().max():
                print(f"  WRONG {tiles}", flush=True)
                return None
            calls = [self._call(tiles, i) for i in range(len(self._routings))]
            return Found(tiles, graph_seconds(calls))
        except (triton.runtime.errors.OutOfResources, triton.compiler.errors.CompilationError):
            return None
        except RuntimeError as error:  # of a pass of the compiler
            if "PassManager" not in str(error):
                raise
            return None


def _candidates(block_m: int, shape: Shape) -> Iterator[Tile]:
    if block_m == 1:
        for rows, piece, warps in itertools.product((1, 2, 4), (256, 512, 1024), (2, 4, 8)):
            if rows * piece <= 128 * 32 * warps:
                yield Tile(rows, piece, 1, warps, 1)
        return
    widths = (32, 64, 128) if block_m < 64 else (64, 128, 256)
    groups = (1,) if block_m == 16 else (1, 8)
    depths = (64, 128) if shape.weight_bytes > 1 else (128,)
    for width, depth, warps, stages, group in itertools.product(
        widths, depths, (4, 8), (2, 3, 4, 5), groups
    ):
        stage = depth * (block_m * shape.row_bytes + width * shape.weight_bytes)
        if stage * stages <= shape.shared_memory and block_m * width <= 128 * 32 * warps:
            yield Tile(width, depth, group, warps, stages)


def _better(one: Found | None, other: Found | None) -> Found | None:
    if one is None or other is None:
        return one or other
    return other if other.seconds < one.seconds else one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=["qwen3-30b-a3b"], choices=[*SIZES])
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--weights", nargs="+", default=["plain"])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    options = parser.parse_args()
    deadline = time.perf_counter() + 60 * options.minutes
    table = {key: dict(entries) for key, entries in tuned_tiles.TUNED.items()}
    with torch.inference_mode():
        for name, weights in itertools.product(options.shapes, options.weights):
            for num_tokens in options.tokens:
                search = Search(SIZES[name], weights, num_tokens, deadline)
                found = search.run()
                tiles = found.tiles
                entry = (tiles.block_m, astuple(tiles.first), astuple(tiles.second))
                table.setdefault(search.shape.key, {})[search.shape.num_choices] = entry
                print(
                    f"{name} {weights} {num_tokens}: {found.seconds * 1e6:.1f} us {entry}",
                    flush=True,
                )
                if not options.dry_run:
                    write_table(tuned_tiles, table)
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
