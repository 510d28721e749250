"""Prove and time attention backends on a GPU. Needs torch, triton and numpy; flashinfer and fa3 their packages besides.

    python test/gpu/run_attention.py [--backend NAME ...] [--only TEXT] [--no-timing] [--sweep] [--jobs N]

Backends are triton (the default), flashinfer, fa3, or all for those whose packages are installed. What flashinfer or fa3 declines
runs on triton, which the table says. Every case runs against the float32 oracle of `attention_cases`; kernels are compiled by several processes at once.
Timings are of replayed CUDA graphs with a cold L2 cache, beside the time that reading the keys and values (decode) or
the matrix products (extend) take at the rates measured first. `--sweep` times other tile shapes of triton too. The exit status
is 1 if a case fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

import torch
from attention_cases import Case, World, is_within, make_backend
from gpu_cases import BF16, CAPTURED, CASE_DTYPES, TIMED
from stale_cases import STALE, STALE_CAPTURED

from sglang.srt.layers.attention.triton_ops import plan

DEVICE = "cuda"
PACKAGES = {"triton": "triton", "flashinfer": "flashinfer", "fa3": "sgl_kernel"}
Job = tuple[str, int, str]  # kind, index of the case, backend
CHECKED = CASE_DTYPES + STALE
REPLAYED = CAPTURED + STALE_CAPTURED
SWEEP_DECODE = [
    (64, 4, 3),
    (64, 4, 5),
    (128, 4, 3),
    (128, 8, 5),
    (32, 4, 5),
    (32, 4, 3),
    (32, 8, 3),
]
SWEEP_EXTEND = [(128, 64, 8, 3), (128, 64, 8, 2), (128, 128, 8, 2), (64, 64, 4, 3), (64, 32, 4, 3)]


def main() -> int:
    options = _parse_options()
    started = time.perf_counter()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {_triton_version()}")
    backends = _find_backends(options.backend)
    jobs: list[Job] = []
    for backend in backends:
        jobs += [("check", i, backend) for i in range(len(CHECKED))]
        jobs += [("captured", i, backend) for i in range(len(REPLAYED))]
    jobs = [job for job in jobs if options.only in _job_name(job)]
    num_failed = 0
    print(f"\n{'backend':10} {'case':44} {'rel. norm':>10} {'max':>10}")
    for line, is_right in _run_jobs(jobs, options.jobs):
        num_failed += not is_right
        print(line, flush=True)
    print(f"\n{len(jobs)} cases, {num_failed} failed, {time.perf_counter() - started:.0f} s")
    timed = [case for case in TIMED if options.only in case.name]
    for backend in backends if options.timing and timed else ():
        print(f"\n{backend}")
        with _make_pool(options.jobs) as pool:
            _print_timings(timed, backend, options.sweep and backend == "triton", pool)
    print(f"{time.perf_counter() - started:.0f} s in all; {'FAILED' if num_failed else 'passed'}")
    return 1 if num_failed else 0


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--backend", nargs="+", default=["triton"], choices=[*PACKAGES, "all"], help="what to prove"
    )
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--no-timing", dest="timing", action="store_false")
    parser.add_argument("--sweep", action="store_true", help="time other tile shapes too")
    parser.add_argument("--jobs", type=int, default=12, help="processes that compile")
    return parser.parse_args()


def _find_backends(wanted: list[str]) -> list[str]:
    """The backends to run. Ends the program for one that is named and not installed."""
    found = [name for name, module in PACKAGES.items() if importlib.util.find_spec(module)]
    if "all" in wanted:
        print(f"not installed: {', '.join(sorted(set(PACKAGES) - set(found))) or 'none'}")
        return found
    missing = [f"{name} needs {PACKAGES[name]}" for name in wanted if name not in found]
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}")
    return wanted


# --- correctness, in worker processes


def _make_pool(num_jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(num_jobs, multiprocessing.get_context("spawn"))


def _run_jobs(jobs: list[Job], num_jobs: int) -> Iterator[tuple[str, bool]]:
    """What `_run_job` says of each. A kernel that ends its process takes the jobs beside it along: they run again, one to a process."""
    unfinished = []
    with _make_pool(num_jobs) as pool:
        for job, future in [(job, pool.submit(_run_job, job)) for job in jobs]:
            try:
                yield future.result()
            except BrokenProcessPool:
                unfinished.append(job)
    for job in unfinished:
        with _make_pool(1) as pool:
            try:
                yield pool.submit(_run_job, job).result()
            except BrokenProcessPool:
                yield f"{job[2]:10} {_job_name(job):44} FAILED, and ended its process", False


def _job_name(job: Job) -> str:
    kind, index, _ = job
    if kind == "captured":
        return REPLAYED[index].name
    case, dtype = CHECKED[index]
    return f"{case.name} {str(dtype).removeprefix('torch.')}"


@torch.inference_mode()
def _run_job(job: Job) -> tuple[str, bool]:
    """A line of the table and whether the case is right."""
    kind, index, chosen = job
    name = f"{chosen:10} {_job_name(job):44}"
    try:
        if kind == "captured":
            dtype = BF16
            world = World(REPLAYED[index], dtype, DEVICE, seed=index)
            backend = make_backend(world, chosen)
            out = world.run_captured(backend)
        else:
            case, dtype = CHECKED[index]
            world = World(case, dtype, DEVICE, seed=index)
            backend = make_backend(world, chosen)
            out = world.run(backend)
        found = world.errors(out)
    except Exception:  # one case must not end the others; its failure is counted
        return f"{name} FAILED\n{traceback.format_exc(limit=-4)}", False
    finally:
        torch.cuda.empty_cache()
    is_right = is_within(found, dtype)
    by_triton = "" if chosen == "triton" else "".join(f", by triton: {r}" for r in backend.declined)
    word = "ok" if is_right else "FAILED"
    return f"{name} {found[0]:10.2e} {found[1]:10.2e}  {word}{by_triton}", is_right


# --- timing


def _print_timings(
    cases: list[Case], backend: str, with_sweep: bool, pool: ProcessPoolExecutor
) -> None:
    configs = [(case, config) for case in cases for config in _configs(case, with_sweep)]
    jobs = [(case, config, backend) for case, config in configs]
    for line in pool.map(_compile_timed, jobs):
        if line:
            print(line)
    bandwidth, flops = _measure_bandwidth(), _measure_flops()
    print(f"\ncopy {bandwidth / 1e12:.2f} TB/s, bfloat16 product {flops / 1e12:.0f} TFLOP/s")
    print(f"\n{'timed':28} {'us':>9} {'floor us':>9} {'of floor':>8}  {'torch us':>9}  tile")
    for case, config in configs:
        world = _timed_world(case)
        spent = _time_case(world, config, backend)
        floor = _bytes(case) / bandwidth if case.is_decode else _flops(case) / flops
        other = _time_torch(world) if config is None else None
        other_text = f"{other * 1e6:9.1f}" if other is not None else " " * 9
        print(
            f"{case.name:28} {spent * 1e6:9.1f} {floor * 1e6:9.1f} {floor / spent:8.0%}  {other_text}"
            f"  {'' if config is None else config}",
            flush=True,
        )
        del world
        torch.cuda.empty_cache()


def _configs(case: Case, with_sweep: bool) -> list[plan.KernelConfig | None]:
    """None stands for the default."""
    if not with_sweep:
        return [None]
    if not case.is_decode:
        return [None] + [plan.KernelConfig(*shape) for shape in SWEEP_EXTEND]
    group = case.heads[0] // case.heads[1]
    block_m = plan.decode_config(group, *case.dims, 2).block_m
    return [None] + [plan.KernelConfig(block_m, *shape) for shape in SWEEP_DECODE]


def _timed_world(case: Case) -> World:
    return World(case, BF16, DEVICE)


def _use_config(config: plan.KernelConfig | None):
    """A context in which the plan answers with `config`."""
    from unittest import mock

    default = (plan.decode_config, plan.extend_config)
    decode, extend = default if config is None else (lambda *_: config,) * 2
    return mock.patch.multiple(plan, decode_config=decode, extend_config=extend)


@torch.inference_mode()
def _compile_timed(job: tuple[Case, plan.KernelConfig | None, str]) -> str:
    """Fills the caches of compiled kernels on disk; a shape that does not fit the GPU is reported."""
    case, config, backend = job
    try:
        world = _timed_world(case)
        with _use_config(config):
            world.run(make_backend(world, backend), save_kv_cache=False)
        torch.cuda.synchronize()
    except Exception as error:  # a tile shape of a sweep may not fit
        return f"{case.name}: {config}: {type(error).__name__}: {str(error)[:100]}"
    finally:
        torch.cuda.empty_cache()
    return ""


@torch.inference_mode()
def _time_case(world: World, config: plan.KernelConfig | None, name: str) -> float:
    """Seconds of one layer's attention, without the write to the cache and the plan of the step."""
    backend, batch = make_backend(world, name), world.batch()
    batch.attn_backend = backend
    backend.init_forward_metadata(batch)
    inputs = world.inputs()
    kwargs = {} if world.sinks is None else {"sinks": world.sinks}

    def call() -> None:
        world.layer(*inputs, batch, save_kv_cache=False, **kwargs)

    try:
        with _use_config(config):
            return _time_graph(call)
    except Exception:  # a tile shape of a sweep may not fit; it was reported when compiled
        return float("nan")


def _time_graph(call) -> float:
    from triton.testing import do_bench

    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return do_bench(graph.replay, warmup=10, rep=60, return_mode="median") / 1e3


@torch.inference_mode()
def _time_torch(world: World) -> float | None:
    """torch's fused attention on a whole prompt, for comparison; None for what it has no causal form of."""
    case = world.case
    is_plain = not (case.is_decode or any(case.cached_lens) or case.layer or case.is_latent)
    if not is_plain or len(set(case.lens)) > 1:
        return None
    q, k, v = (torch.stack(x).transpose(1, 2) for x in (world.q, world.k, world.v))

    def call() -> None:
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    return _time_graph(call)


def _bytes(case: Case) -> int:
    """Keys and values that a decode reads."""
    window = case.layer.get("sliding_window_size", -1)
    num_keys = sum(min(n, window + 1) if window > 0 else n for n in case.lens)
    width = case.dims[0] if case.is_latent else sum(case.dims)
    return num_keys * case.heads[1] * width * 2


def _flops(case: Case) -> int:
    """Products of an extend, of the visible pairs only."""
    window = case.layer.get("sliding_window_size", -1)
    pairs = 0
    for length, prefix in zip(case.lens, case.cached_lens, strict=True):
        seen = torch.arange(prefix, length) + 1
        pairs += int((seen.clamp(max=window + 1) if window > 0 else seen).sum())
    return pairs * case.heads[0] * sum(case.dims) * 2


def _measure_bandwidth() -> float:
    source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.numel() / _time_graph(lambda: target.copy_(source))


def _measure_flops() -> float:
    a = torch.randn(8192, 8192, dtype=BF16, device=DEVICE)
    return 2 * 8192**3 / _time_graph(lambda: torch.mm(a, a))


def _triton_version() -> str:
    import triton

    return f"triton {triton.__version__}"


if __name__ == "__main__":
    sys.exit(main())
