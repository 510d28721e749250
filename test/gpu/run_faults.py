"""Makes the faults of a GPU happen: full at load, too little left for the pool, for graphs and for a step, NaN, and a failed assertion.

    python test/gpu/run_faults.py

A second process fills the GPU, so nothing else should run on it. Prints a table; the exit status says pass or fail. With `--device cpu` only
the cases that need no GPU run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

import torch

MIB, GIB = 2**20, 2**30
CASE_SECONDS = 300
# Weights of about 3.4 GiB, 32 KiB of KV cache per token, activations of 43 KiB per token in the MLP.
LARGE = dict(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=8,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=65536,
)
SMALL = dict(
    vocab_size=1024,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=2048,
)
NAN_TOKEN, ASSERT_TOKEN = 7, 9
GREEDY = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
HOG = """
import sys, torch
left = int(sys.argv[1])
held = []
torch.zeros(1, device="cuda")
while (free := torch.cuda.mem_get_info()[0]) > left + 2**20:
    held.append(torch.empty(min(free - left, 8 * 2**30), dtype=torch.uint8, device="cuda"))
print("full", flush=True)
sys.stdin.read()
"""
PLUGIN = """
import torch
from sglang.srt.models.qwen3 import Qwen3ForCausalLM

class AssertingForCausalLM(Qwen3ForCausalLM):
    def forward(self, input_ids, positions, forward_batch, **kwargs):
        if forward_batch.forward_mode.is_extend():
            torch._assert_async((input_ids != {token}).all())
        return super().forward(input_ids, positions, forward_batch, **kwargs)

EntryClass = AssertingForCausalLM
"""


class Unmet(Exception):
    """A case did not end as it must."""


def check(text: str, *words: str) -> str:
    """`text` in short. Raises Unmet when one of the words is not in it."""
    missing = [word for word in words if word not in text]
    if missing:
        raise Unmet(f"not in the message: {missing}\n    {text}")
    return text if len(text) < 160 else text[:157] + "..."


@contextlib.contextmanager
def full_gpu(left: int) -> Iterator[None]:
    """Another process holds all memory but `left` bytes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOG, str(left)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        if process.stdout.readline().strip() != "full":
            raise Unmet("the GPU could not be filled")
        yield
    finally:
        process.stdin.close()
        process.wait()


@contextlib.contextmanager
def engine(folder: Path, **kwargs: Any) -> Iterator[Any]:
    import sglang

    made = sglang.Engine(model_path=str(folder), skip_tokenizer_init=True, **kwargs)
    try:
        yield made
    finally:
        made.shutdown()


def refusal(folder: Path, **kwargs: Any) -> str:
    """Why an engine does not start."""
    try:
        with engine(folder, **kwargs):
            raise Unmet("the engine started")
    except RuntimeError as error:
        return str(error)


def failure(made: Any, prompt: list[int]) -> str:
    """Why a request fails, with its status."""
    from sglang.srt.managers.request_state import ServiceError

    try:
        made.generate(input_ids=prompt, sampling_params=GREEDY)
    except ServiceError as error:
        return f"{error.status_code}: {error}"
    raise Unmet("the request was answered")


def write_config(folder: Path, shape: dict[str, int], **fields: Any) -> Path:
    """A folder without weights, for random ones."""
    folder.mkdir()
    fields = {"architectures": ["Qwen3ForCausalLM"], **fields}
    config = {**shape, **fields, "model_type": "qwen3", "dtype": "bfloat16", "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_nan_checkpoint(folder: Path) -> Path:
    """A model whose embedding of one token is NaN."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**SMALL, tie_word_embeddings=False, dtype="float32"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.06)
        model.model.embed_tokens.weight[NAN_TOKEN] = torch.nan
    model.save_pretrained(folder)
    return folder


# --- memory


def fraction_that_leaves(num_bytes: int) -> float:
    return 1.0 - num_bytes / torch.cuda.mem_get_info()[1]


def case_no_context(work: Path) -> str:
    with full_gpu(64 * MIB):
        text = refusal(write_config(work / "m", LARGE), load_format="dummy")
        return check(text, "--base-gpu-id")


def case_full_at_load(work: Path) -> str:
    with full_gpu(3 * GIB):
        text = refusal(write_config(work / "m", LARGE), load_format="dummy")
        return check(text, "out of memory while loading the weights", "in use", "--base-gpu-id")


def case_no_room_for_the_pool(work: Path) -> str:
    with full_gpu(6 * GIB):
        text = refusal(write_config(work / "m", LARGE), load_format="dummy")
        return check(text, "too few for one request", "--mem-fraction-static", "free now")


def case_out_of_memory_at_capture(work: Path) -> str:
    """With the least that is left over for graphs at which the pool itself still fits."""
    folder = write_config(work / "m", LARGE)
    text = ""
    for left in (96 * MIB, 192 * MIB, 384 * MIB, 768 * MIB):
        with full_gpu(8 * GIB):
            text = refusal(
                folder,
                load_format="dummy",
                mem_fraction_static=fraction_that_leaves(left),
                max_running_requests=256,
                cuda_graph_max_bs=256,
            )
        if "while capturing" in text:
            break
    return check(text, "out of memory while capturing", "--mem-fraction-static", "free now")


def case_out_of_memory_in_a_step(work: Path, **kwargs: Any) -> str:
    """With the least that is left over at which the engine starts: what graphs take differs between cards."""
    folder, said = write_config(work / "m", LARGE), ""
    for left in (400 * MIB, 600 * MIB, 900 * MIB, 1350 * MIB, 2000 * MIB):
        try:
            with (
                full_gpu(8 * GIB),
                engine(
                    folder,
                    load_format="dummy",
                    mem_fraction_static=fraction_that_leaves(left),
                    max_running_requests=16,
                    chunked_prefill_size=32768,
                    max_prefill_tokens=32768,
                    **kwargs,
                ) as made,
            ):
                return fail_in_a_step(made)
        except RuntimeError as error:
            said = check(str(error), "could not start", "out of memory while")
    raise Unmet(f"the engine never started: {said}")


def fail_in_a_step(made: Any) -> str:
    """A long prompt fails alone, again and again, and leaves nothing behind."""
    short, long = [5, 6, 7, 8], [11] * 30000
    want = made.generate(input_ids=short, sampling_params=GREEDY)["output_ids"]
    text = ""
    for _ in range(3):
        text = check(failure(made, long), "503", "--chunked-prefill-size", "tried to allocate")
        answer = made.generate(input_ids=short, sampling_params=GREEDY)
        if answer["output_ids"] != want:
            raise Unmet("a request after the failure is answered otherwise")
    if not made.flush_cache().success:
        raise Unmet("slots are still held")
    return text


# --- NaN and a lost device


def case_nan(work: Path, **kwargs: Any) -> str:
    """In a prompt, and in a token that is generated, which is a step of decode."""
    prompts = [[5, 6, 8], [5, NAN_TOKEN, 8], [30, 31, 32, 33]]
    with engine(write_nan_checkpoint(work / "m"), enable_nan_detection=True, **kwargs) as made:
        want = [
            made.generate(input_ids=p, sampling_params=GREEDY) for p in (prompts[0], prompts[2])
        ]
        ends: dict[int, dict] = {}
        for item in made.generate(input_ids=prompts, sampling_params=GREEDY, stream=True):
            ends[item["index"]] = item
        reason = ends[1]["meta_info"]["finish_reason"]
        check(str(reason), "abort", "500", "NaN logits for output token 1")
        if [ends[0]["output_ids"], ends[2]["output_ids"]] != [one["output_ids"] for one in want]:
            raise Unmet("other requests of the batch are answered otherwise")
        forced = {**GREEDY, "logit_bias": {str(NAN_TOKEN): 1e4}}
        generated = list(made.generate(input_ids=prompts[0], sampling_params=forced, stream=True))
        return check(
            str(generated[-1]["meta_info"]["finish_reason"]), "NaN logits for output token 2"
        )


def case_failed_assertion(work: Path) -> str:
    package = work / "asserting_models"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "model.py").write_text(PLUGIN.replace("{token}", str(ASSERT_TOKEN)))
    os.environ["SGLANG_EXTERNAL_MODEL_PACKAGE"] = package.name
    os.environ["PYTHONPATH"] = f"{work}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    sys.path.insert(0, str(work))
    folder = write_config(work / "m", SMALL, architectures=["AssertingForCausalLM"])
    with engine(folder, load_format="dummy", max_total_tokens=4096) as made:
        made.generate(input_ids=[5, 6], sampling_params=GREEDY)
        text = failure(made, [5, ASSERT_TOKEN])
        failure(made, [5, 6])  # at once: there is no engine any more
        return check(text, "500", "CUDA_LAUNCH_BLOCKING=1")


GPU_CASES: dict[str, Callable[[Path], str]] = {
    "no memory for a context": case_no_context,
    "full at load": case_full_at_load,
    "no room for the pool": case_no_room_for_the_pool,
    "out of memory at capture": case_out_of_memory_at_capture,
    "out of memory in a step": case_out_of_memory_in_a_step,
    "the same, no graphs, no overlap": lambda work: case_out_of_memory_in_a_step(
        work, disable_cuda_graph=True, disable_overlap_schedule=True
    ),
    "NaN": lambda work: case_nan(work, max_total_tokens=4096),
    "NaN, no graphs": lambda work: case_nan(work, max_total_tokens=4096, disable_cuda_graph=True),
    "failed assertion on the device": case_failed_assertion,
}
CPU_CASES: dict[str, Callable[[Path], str]] = {
    "NaN": lambda work: case_nan(work, max_total_tokens=4096, device="cpu"),
}


def run_case(case: Callable[[Path], str]) -> tuple[bool, str]:
    """Whether it passed, and what was said. A case that hangs fails."""

    def on_alarm(number: int, frame: object) -> None:
        raise Unmet(f"no end after {CASE_SECONDS} s")

    signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(CASE_SECONDS)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return True, case(Path(folder))
    except Exception as error:  # one case of several
        return False, f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no GPU")
        return 2
    failed = 0
    print("| fault | result | what is said |\n|---|---|---|")
    for name, case in (GPU_CASES if args.device == "cuda" else CPU_CASES).items():
        if args.only not in name:
            continue
        passed, text = run_case(case)
        failed += not passed
        words = text.replace("|", "\\|").replace("\n", " ")
        print(f"| {name} | {'pass' if passed else 'FAIL'} | {words} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
