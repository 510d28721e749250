"""The engine on a GPU beside the engine on the CPU: same tokens in float32, close logits in 16 bits, no hidden synchronisation.

    python test/gpu/run_engine.py

Makes its own random checkpoint; needs torch with CUDA, transformers, pyzmq and msgspec. Prints a table; the exit status says pass or fail.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from pathlib import Path

import torch

SHAPE = dict(
    vocab_size=4096,
    hidden_size=512,
    intermediate_size=1024,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=4096,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
)
PROMPT_LENS = (5, 17, 64, 130, 300, 1, 33, 512)


def make_checkpoint(folder: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, dtype="float32"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.1 if "norm" in name else 0.06
            parameter.copy_(torch.randn_like(parameter) * scale + (1.0 if "norm" in name else 0.0))
    model.save_pretrained(folder)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(3, SHAPE["vocab_size"], (n,), generator=generator).tolist()
        for n in PROMPT_LENS
    ]


def run(folder: str, **kwargs) -> tuple[list[list[int]], list[list[float]], float]:
    """(ids, logprobs of the chosen ids, seconds) of greedy decoding."""
    import sglang as sgl

    engine = sgl.Engine(
        model_path=folder,
        skip_tokenizer_init=True,
        max_total_tokens=16384,
        **{"cuda_graph_max_bs": 16, **kwargs},
    )
    params = {"temperature": 0, "max_new_tokens": 48, "ignore_eos": True}
    try:
        engine.generate(input_ids=prompts()[:1], sampling_params=params)
        engine.flush_cache()
        started = time.perf_counter()
        outputs = engine.generate(input_ids=prompts(), sampling_params=params, return_logprob=True)
        seconds = time.perf_counter() - started
    finally:
        engine.shutdown()
    ids = [item["output_ids"] for item in outputs]
    logprobs = [[e[0] for e in item["meta_info"]["output_token_logprobs"]] for item in outputs]
    return ids, logprobs, seconds


def check_no_sync(folder: str, backend: str, disable_cuda_graph: bool) -> str:
    """Launch decode steps with torch raising on every synchronising call; only reading results may wait."""
    from sglang.bench_one_batch import Bench
    from sglang.srt.server_args import ServerArgs

    args = ServerArgs(
        model_path=folder,
        device="cuda",
        dtype="bfloat16",
        max_total_tokens=16384,
        attention_backend=backend,
        skip_tokenizer_init=True,
        disable_cuda_graph=disable_cuda_graph,
        cuda_graph_max_bs=16,
    )
    bench = Bench(args)
    graphs = bench.runner.graphs
    if (graphs is None) != (disable_cuda_graph or backend == "torch_native"):
        raise RuntimeError(
            "graphs are captured" if disable_cuda_graph else "no graphs are captured"
        )
    batch = bench.batch(8, 256)
    batch.extend([[5 + i] * 16 for i in range(8)]).result()
    for _ in range(3):
        batch.decode().result()
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps = [batch.decode() for _ in range(4)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for step in steps:
        step.result()
    del bench, batch
    gc.collect()
    return (
        f"no synchronisation in 4 launched decode steps, graphs {'off' if graphs is None else 'on'}"
    )


def _until_they_differ(ours, want, ids, want_ids):
    """Logprobs of the tokens that both chose after the same text."""
    count = next(
        (i for i, (a, b) in enumerate(zip(ids, want_ids, strict=True)) if a != b), len(ids)
    )
    return ours[: max(count, 1)], want[: max(count, 1)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backends", nargs="+", default=["triton", "torch_native"])
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch sees no GPU")
        return 2
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder))
        want_ids, want_logprobs, _ = run(folder, device="cpu", dtype="float32")
        for backend in args.backends:
            for name, kwargs in {
                "float32": dict(dtype="float32"),
                "float32, no overlap": dict(dtype="float32", disable_overlap_schedule=True),
                "float32, no graphs": dict(dtype="float32", disable_cuda_graph=True),
                "float32, graphs unpadded": dict(
                    dtype="float32", cuda_graph_bs=[8, 4, 1], disable_cuda_graph_padding=True
                ),
                "float32, chunks of 64, page 16": dict(
                    dtype="float32", chunked_prefill_size=64, page_size=16
                ),
                "float32, chunks of 512": dict(dtype="float32", chunked_prefill_size=512),
                "bfloat16": dict(dtype="bfloat16"),
                "bfloat16, no graphs": dict(dtype="bfloat16", disable_cuda_graph=True),
            }.items():
                if backend == "torch_native" and "graphs" in name:
                    continue  # it has none
                ids, logprobs, seconds = run(
                    folder, device="cuda", attention_backend=backend, **kwargs
                )
                same = sum(a == b for a, b in zip(ids, want_ids, strict=True))
                worst = max(
                    abs(x - y)
                    for ours, want, a, b in zip(logprobs, want_logprobs, ids, want_ids, strict=True)
                    for x, y in zip(*_until_they_differ(ours, want, a, b), strict=True)
                )
                exact = "float32" in name
                good = (same == len(ids) and worst < 2e-3) if exact else worst < 0.2
                failed |= not good
                print(
                    f"{backend:13} {name:32} {'ok  ' if good else 'FAIL'} equal texts {same}/{len(ids)}, "
                    f"logprob error {worst:.2e}, {seconds:.2f} s",
                    flush=True,
                )
            for without in (False, True) if backend == "triton" else (True,):
                try:
                    print(f"{backend:13} {check_no_sync(folder, backend, without)}", flush=True)
                except RuntimeError as error:
                    failed = True
                    print(f"{backend:13} FAIL decode step: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
