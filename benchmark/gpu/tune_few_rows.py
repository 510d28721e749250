"""Find the best tiles for products of few rows and write them to `layers/tuned_few_rows.py`.

    python benchmark/gpu/tune_few_rows.py [--shapes 0.6b-qkv ...] [--rows 2 4 8 ...] [--minutes 8] [--dry-run]

Every product stands behind a norm of its rows in a replayed graph, as in a model, so that an early launch has something to overlap; weights
rotate through more memory than the cache holds. Candidates are ordered by an estimate and compiled beforehand in processes of their
own; what a candidate computes is compared with torch and with itself, so that a wrong kernel cannot win.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, TimeoutError
from dataclasses import astuple, replace

import torch
import triton
from time_one_row import SHAPES as ONE_ROW_SHAPES
from tuned_table import write_table

from sglang.srt.layers import tuned_few_rows
from sglang.srt.layers.few_rows_tiles import (
    MAX_COUNTERS,
    NUM_PROCESSORS,
    SHARED_MEMORY,
    Tile,
    block_rows,
    rule,
)
from sglang.srt.layers.triton_ops.few_rows_linear import few_rows_linear
from sglang.srt.layers.triton_ops.norm import rms_norm

SHAPES = {name.replace(" ", "-"): shape for name, shape in ONE_ROW_SHAPES.items()} | {
    "8b-head": (128256, 4096),
    "30b-qkv": (5120, 2048),
    "30b-o": (2048, 4096),
    "30b-head": (151936, 2048),
}
ROWS = (2, 4, 8, 16, 32, 64, 128)
# Rates of an H200, for the estimate: memory, the cache of the device, seconds until a read is there.
MEMORY, CACHE, LATENCY = 4.2e12, 6e12, 0.9e-6
# Bytes that weights rotate through.
ROTATION = 192 << 20
# Of the largest result: roundings of the results, and the order of their sums.
SAME = 2e-2
# A candidate that is less than this better than torch is not worth another kernel.
WORTH = 0.98
# Numbers of inputs of a program that are tried for each number of outputs.
CUTS = 5


class Case:
    """One product in a graph: a norm, then the product with the next weight, for all weights."""

    def __init__(self, num_rows: int, num_out: int, width: int) -> None:
        self.num_rows, self.num_out, self.width = num_rows, num_out, width
        count = max(3, min(64, ROTATION // (num_out * width * 2)))
        options = {"device": "cuda", "dtype": torch.bfloat16}
        self._weights = [torch.randn(num_out, width, **options) for _ in range(count)]
        self._x = torch.randn(num_rows, width, **options)
        self._scale = torch.ones(width, **options)
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        self._graph: torch.cuda.CUDAGraph | None = None  # the last one, which keeps the pool
        rows = self._rows()
        self._want = torch.nn.functional.linear(rows, self._weights[0]).float()

    def _rows(self) -> torch.Tensor:
        return rms_norm(self._x, self._scale, 1e-6)[0]

    def torch_seconds(self, num_replays: int) -> float:
        return self._seconds(torch.nn.functional.linear, num_replays)

    def norm_seconds(self) -> float:
        return self._seconds(lambda rows, weight: rows, 5)

    def seconds(self, tile: Tile, num_replays: int) -> float:
        return self._seconds(lambda rows, weight: _ours(rows, weight, tile), num_replays)

    def is_right(self, tile: Tile) -> bool:
        got = _ours(self._rows(), self._weights[0], tile)
        again = _ours(self._rows(), self._weights[0], tile)
        bound = SAME * self._want.abs().max()
        return bool(((got.float() - self._want).abs() <= bound).all()) and torch.equal(got, again)

    def _seconds(self, product: Callable, num_replays: int) -> float:
        """The fastest replay's, for each weight."""
        product(self._rows(), self._weights[0])
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(
            self._stream
        ):  # less ado than `torch.cuda.graph`, of which there are thousands
            graph.capture_begin(pool=self._pool)
            for weight in self._weights:
                product(self._rows(), weight)
            graph.capture_end()
        self._graph = graph
        events = [torch.cuda.Event(enable_timing=True) for _ in range(num_replays + 2)]
        for event in events:
            graph.replay()
            event.record()
        torch.cuda.synchronize()
        spans = [a.elapsed_time(b) for a, b in itertools.pairwise(events[1:])]
        return min(spans) / 1e3 / len(self._weights)


def _ours(rows: torch.Tensor, weight: torch.Tensor, tile: Tile) -> torch.Tensor:
    return few_rows_linear(rows, weight, None, tile)


def estimated(num_rows: int, num_out: int, width: int) -> dict[Tile, float]:
    """Every tile that fits, with its estimate, the best first."""
    block_m = block_rows(num_rows)
    found = {
        tile: seconds
        for tile in _all_tiles(block_m, num_out, width)
        if (seconds := estimate(tile, block_m, num_out, width)) is not None
    }
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _all_tiles(block_m: int, num_out: int, width: int) -> Iterator[Tile]:
    for block_n, block_k, is_swapped, warps, stages in itertools.product(
        (16, 32, 64, 128, 256), (128, 64, 256), (False, True), (4, 8), (4, 3, 5, 6)
    ):
        # The left factor of a product on the wide units has at least 64 rows, and 16 for each warp.
        if (is_swapped and block_n < 16 * warps) or block_m * block_n > 64 * 32 * warps:
            continue
        if (warps == 8 and block_m * block_n < 64 * 64) or (warps == 4 and block_n == 256):
            continue
        if width % block_k:
            continue
        tile = Tile(block_n, block_k, 1, is_swapped, warps, stages)
        for chunk in _chunks(tile.num_tiles(num_out), tile.pieces(width)):
            if stages <= chunk + 1:
                yield replace(tile, chunk=chunk)


def _chunks(num_tiles: int, pieces: int) -> set[int]:
    """Steps of a program: parts of a tile, whole tiles, and even shares of everything for some programs on each processor."""
    even = {pieces // n for n in (1, 2, 3, 4, 6, 8, 12, 16) if pieces % n == 0}
    shares = {-(-num_tiles * pieces // (n * NUM_PROCESSORS)) for n in (1, 2, 3, 4, 6)}
    return {n for n in even | shares if n >= min(2, pieces)}


def estimate(tile: Tile, block_m: int, num_out: int, width: int) -> float | None:
    """Seconds by what is read from the memory and from the cache and by how evenly; None where it does not fit."""
    num_tiles, pieces = tile.num_tiles(num_out), tile.pieces(width)
    programs = tile.num_programs(num_out, width)
    on_wide_units = tile.is_swapped or block_m >= 64
    shared = tile.stage_bytes(block_m) * (tile.num_stages - (not on_wide_units)) + 1024
    sums = block_m * tile.block_n // (32 * tile.num_warps)
    threads = 32 * tile.num_warps * (sums + 56)
    resident = min(SHARED_MEMORY // shared, 65536 // threads, -(-programs // NUM_PROCESSORS))
    if resident < 1 or (tile.is_split(width) and num_tiles > MAX_COUNTERS):
        return None
    weight = 2 * num_out * width
    on_the_way = resident * min(tile.num_stages - 1, tile.chunk) * tile.block_n * tile.block_k * 2
    rate = min(MEMORY / NUM_PROCESSORS, on_the_way / LATENCY)
    share = -(-programs // NUM_PROCESSORS) * tile.chunk * tile.block_n * tile.block_k * 2
    num_parts = -(-pieces // tile.chunk) if tile.is_split(width) else 0
    if num_parts > (8 if sums >= 64 else 16):  # the sum of the parts would not fit into registers
        return None
    parts = 8 * (programs + num_tiles) * block_m * tile.block_n if num_parts else 0
    cached = weight + 2 * num_tiles * width * block_m + parts
    ending = 0.8e-6 + 0.1e-6 * num_parts if num_parts else 0.0
    return max(share / rate, cached / CACHE) + ending


class Search:
    """The best tiles of one product and block of rows, in rounds: how the weight is cut, then the form of a step, then the stages."""

    def __init__(self, num_rows: int, num_out: int, width: int) -> None:
        self.product = num_rows, num_out, width
        self.found: dict[Tile, float] = {}
        self._tiles = estimated(*self.product)

    def wanted(self, which: int) -> list[Tile]:
        """Tiles to try in a round that were not tried yet."""
        makers = (self._cuts, self._forms, self._stages)
        return [tile for tile in dict.fromkeys(makers[which]()) if tile not in self.found]

    def best(self, count: int) -> list[Tile]:
        return sorted(self.found, key=self.found.__getitem__)[:count]

    def _cuts(self) -> list[Tile]:
        """For each number of outputs the best of each number of inputs of a program, none much worse than the best of all."""
        limit = 1.5 * min(self._tiles.values()) + 1e-6
        taken: dict[int, dict[int, Tile]] = {}
        for tile, seconds in self._tiles.items():
            cuts = taken.setdefault(tile.block_n, {})
            if seconds <= limit and len(cuts) < CUTS:
                cuts.setdefault(tile.block_k * tile.chunk, tile)
        return [rule(*self.product), *(tile for cuts in taken.values() for tile in cuts.values())]

    def _forms(self) -> list[Tile]:
        """The best two cuts with other steps, factors and warps."""
        forms = {}
        for good in self.best(2):
            inputs = good.block_k * good.chunk
            for tile in self._tiles:
                is_same = tile.block_n == good.block_n
                if is_same and abs(tile.block_k * tile.chunk - inputs) < tile.block_k:
                    form = good.block_n, inputs, tile.block_k, tile.is_swapped, tile.num_warps
                    forms.setdefault(form, tile)
        return [*forms.values()]

    def _stages(self) -> list[Tile]:
        """The best three with other numbers of stages."""
        good = {replace(tile, num_stages=0) for tile in self.best(3)}
        return [tile for tile in self._tiles if replace(tile, num_stages=0) in good]


def search(products: list[tuple[int, int, int]], deadline: float) -> dict[tuple, list[Tile]]:
    """The best few tiles of each product."""
    searches = [Search(*product) for product in products]
    context = multiprocessing.get_context("spawn")
    num_workers = max(1, min(16, os.cpu_count() or 1))
    pool = ProcessPoolExecutor(num_workers, mp_context=context)
    for which in range(3):
        start = time.perf_counter()
        jobs = [(*s.product, tile) for s in searches for tile in s.wanted(which)]
        try:
            works = compile_all(pool, jobs, deadline)
        except BrokenExecutor:
            print(
                f"round {which + 1}: the compiler crashed; what was found before counts", flush=True
            )
            break
        middle = time.perf_counter()
        for one in searches:
            tiles = [tile for tile in one.wanted(which) if (*one.product, tile) in works]
            one.found |= measure_all(Case(*one.product), tiles, deadline)
        print(
            f"round {which + 1}: {len(works)} of {len(jobs)} candidates compiled in "
            f"{middle - start:.0f} s, measured in {time.perf_counter() - middle:.0f} s",
            flush=True,
        )
    pool.shutdown(cancel_futures=True)
    return {one.product: one.best(3) for one in searches}


def compile_all(pool: ProcessPoolExecutor, jobs: list[tuple], deadline: float) -> set[tuple]:
    """The jobs that work and were done in time."""
    futures = {job: pool.submit(compile_one, *job) for job in jobs}
    works = set()
    for job, future in futures.items():
        try:
            if future.result(timeout=max(0.0, deadline - time.perf_counter())):
                works.add(job)
        except TimeoutError:
            future.cancel()
    return works


def compile_one(num_rows: int, num_out: int, width: int, tile: Tile) -> bool:
    """In a process of its own: leaves the kernel in Triton's cache of compiled kernels. False if it does not fit the device."""
    x = torch.zeros(num_rows, width, device="cuda", dtype=torch.bfloat16)
    weight = torch.empty(num_out, width, device="cuda", dtype=torch.bfloat16)
    try:
        _ours(x, weight, tile)
        torch.cuda.synchronize()
    except (triton.runtime.errors.OutOfResources, triton.compiler.errors.CompilationError):
        return False
    except RuntimeError as error:  # of a pass of the compiler
        if "PassManager" not in str(error):
            raise
        return False
    return True


def measure_all(case: Case, tiles: list[Tile], deadline: float) -> dict[Tile, float]:
    found = {}
    for tile in tiles:
        if time.perf_counter() > deadline:
            break
        if case.is_right(tile):
            found[tile] = case.seconds(tile, 4)
        else:
            print(f"  WRONG {case.num_rows} x {case.num_out} x {case.width} {tile}", flush=True)
    return found


def judge(case: Case, tiles: list[Tile]) -> tuple[Tile | None, float, float, float]:
    """The winner (None: torch), and seconds of ours, torch's and of the norm alone."""
    theirs = case.torch_seconds(12)
    timed = [(case.seconds(tile, 12), tile) for tile in tiles if case.is_right(tile)]
    ours, best = min(timed, key=lambda pair: pair[0], default=(float("inf"), None))
    return (best if ours <= WORTH * theirs else None), ours, theirs, case.norm_seconds()


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=[*SHAPES], choices=[*SHAPES])
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    start = time.perf_counter()
    # The rest is for the comparison with torch.
    deadline = start + 60 * options.minutes - min(60.0, 20 * options.minutes)
    blocks = sorted({block_rows(num_rows) for num_rows in options.rows})
    products = [(m, *SHAPES[name]) for name in options.shapes for m in blocks]
    table = {key: dict(entries) for key, entries in tuned_few_rows.TUNED.items()}
    with torch.inference_mode():
        best_of = search(products, deadline)
        print(f"{'product':12} rows  torch us  TB/s   ours us  TB/s   with the norm, us   tile")
        for name, num_rows in itertools.product(options.shapes, options.rows):
            shape = SHAPES[name]
            if not (tiles := best_of[(block_rows(num_rows), *shape)]):
                print(f"{name:12} {num_rows:4}  nothing was measured in time", flush=True)
                continue
            best, ours, theirs, norm = judge(Case(num_rows, *shape), tiles)
            fields = None if best is None else astuple(best)
            table.setdefault(shape, {})[num_rows] = fields
            print(
                f"{name:12} {num_rows:4}  {_rate(theirs - norm, shape)}  {_rate(ours - norm, shape)}"
                f"   {theirs * 1e6:6.2f} {ours * 1e6:6.2f}   {fields or 'torch'}",
                flush=True,
            )
            if not options.dry_run:
                write_table(tuned_few_rows, table)
    print(f"{time.perf_counter() - start:.0f} s", flush=True)


def _rate(seconds: float, shape: tuple[int, int]) -> str:
    return f"{seconds * 1e6:8.2f} {2 * shape[0] * shape[1] / max(seconds, 1e-9) / 1e12:5.2f}"


if __name__ == "__main__":
    main()
