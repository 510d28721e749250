"""The engine on a GPU beside the engine on the CPU: same tokens in float32, close logits in 16 bits, no hidden synchronisation.

    python test/gpu/run_engine.py [--backends NAME ...]

Makes its own random checkpoint; needs torch with CUDA, transformers, pyzmq and msgspec. Prints a table; the exit status says pass or fail.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

import torch
from table import Answer, report_answers

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
# Their packages have no kernels for float32.
HALF_ONLY = ("fa3", "flashinfer")


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


def run(folder: str, **kwargs) -> tuple[list[Answer], float]:
    """Answers of greedy decoding, and the seconds."""
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
    answers = [
        (item["output_ids"], [e[0] for e in item["meta_info"]["output_token_logprobs"]])
        for item in outputs
    ]
    return answers, seconds


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
    for name, (spec, asked) in samplings().items():
        try:
            _launch_without_sync(bench.batch(8, 256, sampling=spec, asked=asked))
        except RuntimeError as error:
            raise RuntimeError(f"{name}: {error}") from error
    del bench
    gc.collect()
    return (
        f"no synchronisation in launched prompts and decode steps with {', '.join(samplings())}; "
        f"graphs {'off' if graphs is None else 'on'}"
    )


def samplings() -> dict[str, tuple]:
    """(settings, what is asked for) of the requests that must be launched without waiting."""
    from sglang.srt.managers.step_plan import SamplingSpec

    penalties = SamplingSpec(frequency_penalty=0.5, presence_penalty=0.2, repetition_penalty=1.2)
    logprobs = dict(return_logprob=True, top_logprobs=3, token_ids_logprob=[5, 9])
    return {
        "greedy rows": (SamplingSpec(top_k=1), {}),
        "logprobs": (SamplingSpec(top_k=1), logprobs),
        "drawn rows": (SamplingSpec(temperature=0.7), {}),
        "top-k and top-p": (SamplingSpec(top_k=20, top_p=0.9), logprobs),
        "top-p": (SamplingSpec(top_p=0.9), {}),
        "min-p": (SamplingSpec(min_p=0.1), {}),
        "seeds": (SamplingSpec(temperature=0.7, seed=3), logprobs),
        "penalties": (penalties, {}),
        "bias": (SamplingSpec(top_k=1, logit_bias={5: 1.0, 6: -2.0}), {}),
        "forbidden ids": (SamplingSpec(top_k=1, min_new_tokens=999, stop_ids=[2, 7]), {}),
    }


def _launch_without_sync(batch) -> None:
    """Everything once, for what is compiled and allocated at its first use; then launched, then read."""
    batch.extend([[5 + i] * 16 for i in range(8)]).result()
    for _ in range(3):
        batch.decode().result()
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps = [batch.extend([[7 + i] * 16 for i in range(8)])]
        steps += [batch.decode() for _ in range(4)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for step in steps:
        step.result()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--backends",
        nargs="+",
        default=["triton", "torch_native"],
        choices=["triton", "torch_native", *HALF_ONLY],
    )
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch sees no GPU")
        return 2
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder))
        want, _ = run(folder, device="cpu", dtype="float32")
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
                exact = "float32" in name
                if exact and backend in HALF_ONLY:
                    continue
                found, seconds = run(folder, device="cuda", attention_backend=backend, **kwargs)
                failed |= bool(
                    report_answers(
                        f"{backend:13} {name}",
                        want,
                        found,
                        2e-3 if exact else 0.2,
                        must_be_equal=exact,
                        more=f", {seconds:.2f} s",
                    )
                )
            for without in (True,) if backend == "torch_native" else (False, True):
                try:
                    print(f"{backend:13} {check_no_sync(folder, backend, without)}", flush=True)
                except RuntimeError as error:
                    failed = True
                    print(f"{backend:13} FAIL decode step: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
