"""Our server beside `transformers serve`: the same eight streams through HTTP, one server after the other.

    pip install accelerate          # which `transformers serve` needs
    python benchmark/cpu/http_streams.py

Both serve the tiny Llama in bfloat16 and answer /v1/completions with a stream; one client measures both. transformers is measured
with and without its continuous batching. Writes to benchmark/results.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from pathlib import Path

import httpx
import records
import workloads
from checkpoints import DEFAULT_CACHE, checkpoint, vocab_size
from servers import running, running_server

MODEL = "tiny-llama"
SERVERS = ("sglang", "transformers", "transformers, continuous batching")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--num-requests", type=int, default=96)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=records.num_cpus())
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--results", type=Path, default=records.RESULTS, metavar="FOLDER")
    args = parser.parse_args()
    records.warn_if_busy()
    record = records.Record.begin("cpu-http-streams", threads=args.threads, repeats=args.repeat)
    folder = checkpoint(MODEL, args.cache_dir)
    figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in SERVERS}
    for repeat in range(args.repeat):
        for name in SERVERS:
            figures[name].append(measure(name, folder, args, repeat))
            print(f"repeat {repeat}, {name}: {figures[name][-1]}", flush=True)
    record.add_table("Medians (lowest - highest)", table(figures))
    record.data = {"figures": figures, "num_requests": args.num_requests}
    record.write(args.results)


def table(figures: dict[str, list[tuple[float, float, float]]]) -> list[list[str]]:
    lines = [["server", "requests/s", "TTFT p50, ms", "ITL p50, ms"]]
    for name, runs in figures.items():
        columns = list(zip(*runs, strict=True))
        lines.append(
            [name, *(f"{statistics.median(c):.4g} ({min(c):.4g} - {max(c):.4g})" for c in columns)]
        )
    return lines


def measure(
    name: str, folder: Path, args: argparse.Namespace, seed: int
) -> tuple[float, float, float]:
    """Requests per second, median time to first token and between tokens in ms, on a fresh server."""
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
    if name == "sglang":
        env["PYTHONPATH"] = str(records.ROOT / "python")
        flags = ["--model-path", str(folder), "--device", "cpu", "--dtype", "bfloat16"]
        server = running_server([*flags, "--max-total-tokens", "16384"], env)
    else:
        command = [str(Path(sys.executable).with_name("transformers")), "serve"]
        command += ["--host", "127.0.0.1", "--dtype", "bfloat16", "--log-level", "error"]
        command += ["--continuous-batching"] if "continuous" in name else []
        server = running([*command, "{port}", str(folder)], env)
    with records.limited_cores(args.threads), server as (url, _):
        return asyncio.run(_run_streams(url, str(folder), args.num_requests, seed))


async def _run_streams(
    url: str, model: str, num_requests: int, seed: int
) -> tuple[float, float, float]:
    draw = workloads.Draw(vocab_size(MODEL), seed)
    prompts = [
        " ".join(f"w{i}" for i in draw.prompt(workloads.HTTP_PROMPT_LEN))
        for _ in range(num_requests + workloads.HTTP_STREAMS)
    ]
    waiting = iter(prompts)
    firsts: list[float] = []
    gaps: list[float] = []

    async def stream(client: httpx.AsyncClient, count: int) -> None:
        for prompt in waiting:
            await _request(client, model, prompt, firsts, gaps)
            count -= 1
            if count == 0:
                return

    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        streams = range(workloads.HTTP_STREAMS)
        await asyncio.gather(*(stream(client, 1) for _ in streams))  # warm-up
        firsts.clear()
        gaps.clear()
        started = time.perf_counter()
        await asyncio.gather(*(stream(client, 0) for _ in streams))
        seconds = time.perf_counter() - started
    assert len(firsts) == num_requests, f"{len(firsts)} of {num_requests} requests answered"
    return (
        num_requests / seconds,
        1000 * statistics.median(firsts),
        1000 * statistics.median(gaps),
    )


async def _request(
    client: httpx.AsyncClient, model: str, prompt: str, firsts: list[float], gaps: list[float]
) -> None:
    body = {"model": model, "prompt": prompt, "max_tokens": workloads.HTTP_OUTPUT_LEN}
    sent = last = time.perf_counter()
    pieces = 0
    async with client.stream(
        "POST", "/v1/completions", json={**body, "stream": True, "temperature": 0}
    ) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data:") or '"text":' not in line:
                continue
            now = time.perf_counter()
            (firsts if pieces == 0 else gaps).append(now - (sent if pieces == 0 else last))
            last = now
            pieces += 1
    assert pieces >= workloads.HTTP_OUTPUT_LEN - 1, f"{pieces} pieces"


if __name__ == "__main__":
    main()
