"""What the accuracy benchmarks share: their flags, many prompts put to a running server, the line of results."""

from __future__ import annotations

import argparse
import json
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_TIMEOUT = 3600.0  # seconds for one answer


def add_common_sglang_args_and_parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Add the flags of every benchmark and parse."""
    add = parser.add_argument
    add("--parallel", type=int, default=64, help="most requests under way at once")
    add("--host", default="http://127.0.0.1")
    add("--port", type=int, default=30000)
    add("--backend", default="srt", choices=("srt",))
    add("--device", default="auto", help="accepted for old scripts; the server decides")
    add("--result-file", default="result.jsonl", help="JSON lines, appended")
    add("--raw-result-file", help="JSON lines with every prompt and answer")
    return parser.parse_args(argv)


def base_url(args: argparse.Namespace) -> str:
    host = args.host if "://" in args.host else f"http://{args.host}"
    return f"{host}:{args.port}"


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Raises OSError when no server answers, or with an error status."""
    request = urllib.request.Request(url, json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as reply:
        return json.loads(reply.read())


def generate_all(
    args: argparse.Namespace, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str] = ()
) -> tuple[list[str], float, int]:
    """Greedy answers in order, the seconds that they took, and how many tokens they have."""
    params = {"temperature": 0, "max_new_tokens": max_new_tokens, "stop": list(stop)}
    url = f"{base_url(args)}/generate"

    def ask(prompt: str) -> dict[str, Any]:
        return post(url, {"text": prompt, "sampling_params": params})

    started = time.perf_counter()
    with ThreadPoolExecutor(args.parallel) as threads:
        answers = list(threads.map(ask, prompts))
    latency = time.perf_counter() - started
    if args.raw_result_file:
        rows = [{"prompt": p, "answer": a["text"]} for p, a in zip(prompts, answers, strict=True)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        Path(args.raw_result_file).write_text(text, encoding="utf-8")
    num_tokens = sum(answer["meta_info"]["completion_tokens"] for answer in answers)
    return [answer["text"] for answer in answers], latency, num_tokens


def append_result(
    args: argparse.Namespace,
    task: str,
    accuracy: float,
    latency: float,
    num_requests: int,
    other: dict[str, Any],
) -> None:
    """One JSON line."""
    line = {
        "task": task,
        "backend": args.backend,
        "num_gpus": 1,
        "latency": round(latency, 3),
        "accuracy": round(accuracy, 3),
        "num_requests": num_requests,
        "other": other,
    }
    with open(args.result_file, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def answer_with_transformers(
    model_path: str, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str] = ()
) -> list[str]:
    """Greedy answers of a model of transformers, cut before the first of `stop`, as a server's are."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForMultimodalLM,
        AutoTokenizer,
    )
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model_type = AutoConfig.from_pretrained(model_path).model_type
    is_text = model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    auto_class: Any = AutoModelForCausalLM if is_text else AutoModelForMultimodalLM
    model: Any = auto_class.from_pretrained(model_path, dtype=dtype).eval().to(device)
    answers = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer.encode(prompt)], device=device)
        with torch.inference_mode():
            found = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                max_new_tokens=max_new_tokens,
                pad_token_id=0,
            )
        text = tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)
        places = [text.find(word) for word in stop if word in text]
        answers.append(text[: min(places)] if places else text)
    return answers


def print_comparison(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Print every answer that differs, then how many are equal; returns that number."""
    same = [one.strip() == other.strip() for one, other in zip(ours, theirs, strict=True)]
    for place, is_same in enumerate(same):
        if not is_same:
            print(f"{place}: {ours[place]!r} and {theirs[place]!r} of transformers")
    print(f"{sum(same)} of {len(same)} answers equal those of transformers")
    return sum(same)
