"""How fast a checkpoint is here and in transformers, on the same machine in the same minute: time to the first token, and tokens per second.

The engine is a real one, in processes of its own; transformers generates greedily with its cache. Best of a few repetitions, because
other work on the machine only ever makes a run slower.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

PROMPT_LEN = 64
NUM_TOKENS = 32
BATCH = 4
_REPEATS = 3


@dataclasses.dataclass(frozen=True)
class Speed:
    """`ttft` in seconds for a prompt of 64 tokens; rates in output tokens per second, prefill included for the batch."""

    ttft: float
    tokens_per_second: float
    batch_tokens_per_second: float


@dataclasses.dataclass(frozen=True)
class SpeedReport:
    """Both sides, and the tokens that the engine produced for the first prompt beside those of transformers."""

    engine: Speed
    reference: Speed
    engine_ids: list[int]
    reference_ids: list[int]
    prompt_ids: list[int]


def measure_speed(
    folder: str,
    reference: Any,
    vocab_size: int,
    trust_remote_code: bool = False,
    model_impl: str = "auto",
) -> SpeedReport:
    """Start an engine, measure it, end it, measure transformers. Raises what the engine raises when it cannot start."""
    from sglang.srt.entrypoints.engine import Engine  # late: it starts processes

    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(3, vocab_size, (BATCH, PROMPT_LEN), generator=generator).tolist()
    engine = Engine(
        model_path=folder,
        dtype="float32",
        device="cpu",
        skip_tokenizer_init=True,
        disable_radix_cache=True,
        max_total_tokens=4096,
        trust_remote_code=trust_remote_code,
        model_impl=model_impl,
    )
    try:
        ours, our_ids = _measure(_engine_call(engine), prompts)
    finally:
        engine.shutdown()
    theirs, their_ids = _measure(_reference_call(reference), prompts)
    return SpeedReport(ours, theirs, our_ids, their_ids, prompts[0])


# Prompts and a number of tokens -> the new tokens of each.
_Call = Callable[[Sequence[list[int]], int], list[list[int]]]


def _measure(call: _Call, prompts: list[list[int]]) -> tuple[Speed, list[int]]:
    first = prompts[:1]
    call(prompts, 2)  # what is done once is not measured
    ttft, _ = _best(call, first, 1)
    seconds, outputs = _best(call, first, NUM_TOKENS)
    batch_seconds, _ = _best(call, prompts, NUM_TOKENS)
    decode = max(seconds - ttft, 1e-9)
    speed = Speed(ttft, (NUM_TOKENS - 1) / decode, BATCH * NUM_TOKENS / batch_seconds)
    return speed, outputs[0]


def _best(
    call: _Call, prompts: Sequence[list[int]], num_tokens: int
) -> tuple[float, list[list[int]]]:
    best, outputs = float("inf"), []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        outputs = call(prompts, num_tokens)
        best = min(best, time.perf_counter() - started)
    return best, outputs


def _engine_call(engine: Any) -> _Call:
    def call(prompts: Sequence[list[int]], num_tokens: int) -> list[list[int]]:
        params = {"temperature": 0, "max_new_tokens": num_tokens, "ignore_eos": True}
        answers = engine.generate(input_ids=list(prompts), sampling_params=params)
        return [answer["output_ids"] for answer in answers]

    return call


def _reference_call(model: Any) -> _Call:
    @torch.inference_mode()
    def call(prompts: Sequence[list[int]], num_tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts, device=model.device)
        # eos_token_id=None: exactly that many tokens.
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return output[:, len(prompts[0]) :].tolist()

    return call
