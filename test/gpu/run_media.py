"""Models that see on a GPU beside the same models on the CPU: same tokens and close logprobs in float32, decode steps captured.

    python test/gpu/run_media.py

Makes its own random checkpoints; needs torch with CUDA, transformers, Pillow, pyzmq and msgspec. Prints a table; the exit status says
pass or fail. With two GPUs it also deals images to two ranks.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

import torch
from media_steps import first_chunk, make_prompt
from table import Answer, report_answers

from sglang.srt.multimodal.embedding_cache import clear_mm_embedding_caches

PLACES = {
    "Qwen2VLForConditionalGeneration": "<|vision_start|><|image_pad|><|vision_end|>",
    "Qwen2_5_VLForConditionalGeneration": "<|vision_start|><|image_pad|><|vision_end|>",
    "LlavaNextForConditionalGeneration": "<image>",
    "MllamaForConditionalGeneration": "<|image|>",
}
PARAMS = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}
TOLERANCE = 2e-3


def prompts(place: str) -> tuple[list[str], list[Any]]:
    from sglang.test.media_files import draw

    red, blue = draw("circle", "red"), draw("square", "blue")
    texts = [f"{place} what?", "no picture at all", f"{place} or {place}?", f"{place} again"]
    return texts, [red, None, [red, blue], blue]


def run(folder: str, place: str, **flags: Any) -> list[Answer]:
    """(ids, their logprobs) of every prompt: one by one, then all at once, then again from the cache."""
    import sglang as sgl

    texts, images = prompts(place)
    engine = sgl.Engine(
        model_path=folder,
        dtype="float32",
        max_total_tokens=8192,
        cuda_graph_max_bs=8,
        enable_multimodal=True,
        **flags,
    )
    options: dict[str, Any] = {"sampling_params": PARAMS, "return_logprob": True}
    try:
        answers = [
            engine.generate(text, image_data=image, **options)
            for text, image in zip(texts, images, strict=True)
        ]
        for _ in range(2):
            answers += engine.generate(texts, image_data=images, **options)
    finally:
        engine.shutdown()
    return [
        (answer["output_ids"], [e[0] for e in answer["meta_info"]["output_token_logprobs"]])
        for answer in answers
    ]


def bench_of(folder: str) -> Any:
    from sglang.bench_one_batch import Bench
    from sglang.srt.server_args import ServerArgs

    args = ServerArgs(
        model_path=folder, device="cuda", max_total_tokens=8192, cuda_graph_max_bs=8,
        skip_tokenizer_init=True, enable_multimodal=True,
    )  # fmt: skip
    return Bench(args)


def check_no_wait(bench: Any) -> str:
    """A step with a picture is launched while the GPU is busy, features in several pieces included. Raises RuntimeError when the host waits."""
    worker = bench.worker
    prompt = make_prompt(bench.runner, [(1, 128, 128)])  # 16,384 patches
    plan = first_chunk(prompt, 64, bench.page_size)
    worker.launch(plan).result()  # for what is compiled and allocated at its first use
    clear_mm_embedding_caches()
    torch.cuda.synchronize()
    busy = torch.cuda.Event()
    torch.cuda._sleep(3_000_000_000)  # cycles: more than a second
    busy.record()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step = worker.launch(plan)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    if busy.query():
        raise RuntimeError("launching a step with a picture waited for the steps in front of it")
    step.result()
    return "a step with a picture was launched without a wait"


def check_capture(bench: Any) -> str:
    """Decode steps and short prefills of a model that turns by three positions are replayed, not launched. Raises RuntimeError."""
    graphs = bench.runner.graphs
    if graphs is None:
        raise RuntimeError("no graphs are captured")
    replayed: list[str] = []
    original = graphs.replay

    def replay(batch: Any) -> Any:
        replayed.append(batch.forward_mode.name)
        return original(batch)

    graphs.replay = replay
    batch = bench.batch(3, 64)
    batch.extend([[5 + i] * 16 for i in range(3)]).result()
    for _ in range(4):
        batch.decode().result()
    if replayed != ["EXTEND", *["DECODE"] * 4]:
        raise RuntimeError(f"replayed: {replayed}")
    return "a short prefill and 4 decode steps replayed"


def main() -> int:
    if not torch.cuda.is_available():
        print("torch sees no GPU")
        return 2
    from sglang.test.tiny_vlm import write_vlm_twin

    failed = 0
    for architecture, place in PLACES.items():
        with tempfile.TemporaryDirectory() as parent:
            folder = write_vlm_twin(Path(parent, "model"), architecture)
            want = run(folder, place, device="cpu")
            kinds: dict[str, dict[str, Any]] = {
                "graphs": {},
                "no graphs": {"disable_cuda_graph": True},
                "chunks of 16": {"chunked_prefill_size": 16},
                "triton in the tower": {"mm_attention_backend": "triton_attn"},
            }
            if torch.cuda.device_count() > 1:
                kinds["2 ranks"] = {"tp_size": 2}
                kinds["2 ranks, images dealt"] = {"tp_size": 2, "mm_enable_dp_encoder": True}
            for name, flags in kinds.items():
                found = run(folder, place, device="cuda", **flags)
                failed += report_answers(f"{architecture}, {name}", want, found, TOLERANCE)
            if architecture.startswith("Qwen"):
                bench = bench_of(folder)
                for check in (check_capture, check_no_wait):
                    print(f"{architecture}: {check(bench)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
