"""The workloads that both contestants run: what is measured, on which model, and how the figure is worked out.

Every prompt is drawn anew, so a prefix cache stays on and helps only where a workload shares a prefix on purpose.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from typing import Protocol

import numpy as np

Prompts = list[list[int]]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is computed; `QUICK` is for a look, `FULL` for figures."""

    ttft_repeats: int
    decode_steps: int
    tiny_steps: int
    requests: int
    prefix_len: int


FULL = Sizes(ttft_repeats=3, decode_steps=64, tiny_steps=128, requests=32, prefix_len=1024)
QUICK = Sizes(ttft_repeats=1, decode_steps=12, tiny_steps=48, requests=8, prefix_len=256)
DECODE_PROMPT_LEN = 128
TINY_PROMPT_LEN = 16
SUFFIX_LEN = 64
SHARED_OUTPUT_LEN = 16
HTTP_STREAMS = 8
HTTP_PROMPT_LEN = 128
HTTP_OUTPUT_LEN = 64


class Contestant(Protocol):
    """A loaded model. Greedy, no early end."""

    def generate(self, prompts: Prompts, output_lens: list[int]) -> float:
        """Seconds for all prompts at once (they have equal lengths, and so have the outputs)."""
        ...

    def serve(self, prompts: Prompts, output_lens: list[int]) -> float:
        """Seconds for requests of any lengths that arrive together, in the best way it has."""
        ...


class Draw:
    """Random prompts; the same sequence for every contestant of a repeat."""

    def __init__(self, vocab_size: int, seed: int) -> None:
        self._vocab_size = vocab_size
        self.rng = np.random.default_rng(seed)

    def prompt(self, length: int) -> list[int]:
        return self.rng.integers(0, self._vocab_size, length).tolist()

    def prompts(self, count: int, length: int) -> Prompts:
        return [self.prompt(length) for _ in range(count)]


def ttft_512(contestant: Contestant, draw: Draw, sizes: Sizes) -> float:
    """Seconds from a prompt of 512 tokens to its first token."""
    repeats = range(sizes.ttft_repeats)
    return statistics.median(contestant.generate(draw.prompts(1, 512), [1]) for _ in repeats)


def decode_rate(batch: int) -> Callable[[Contestant, Draw, Sizes], float]:
    """Tokens per second while `batch` sequences are decoded together."""

    def measure(contestant: Contestant, draw: Draw, sizes: Sizes) -> float:
        return batch / step_seconds(contestant, draw, batch, DECODE_PROMPT_LEN, sizes.decode_steps)

    return measure


def tiny_step(batch: int) -> Callable[[Contestant, Draw, Sizes], float]:
    """Milliseconds per decode step of the tiny model: mostly overhead."""

    def measure(contestant: Contestant, draw: Draw, sizes: Sizes) -> float:
        return 1000 * step_seconds(contestant, draw, batch, TINY_PROMPT_LEN, sizes.tiny_steps)

    return measure


def mixed_requests(contestant: Contestant, draw: Draw, sizes: Sizes) -> float:
    """Seconds for requests of 32 to 512 tokens in and 16 to 128 out."""
    input_lens = draw.rng.integers(32, 513, sizes.requests).tolist()
    output_lens = draw.rng.integers(16, 129, sizes.requests).tolist()
    return contestant.serve([draw.prompt(length) for length in input_lens], output_lens)


def shared_prefix(contestant: Contestant, draw: Draw, sizes: Sizes) -> float:
    """Seconds for requests that share a long prefix, arriving together."""
    prefix = draw.prompt(sizes.prefix_len)
    prompts = [prefix + draw.prompt(SUFFIX_LEN) for _ in range(sizes.requests)]
    return contestant.serve(prompts, [SHARED_OUTPUT_LEN] * sizes.requests)


def step_seconds(
    contestant: Contestant, draw: Draw, batch: int, prompt_len: int, steps: int
) -> float:
    """Seconds per decode step: (time for steps + 1 tokens - time for 1 token) / steps."""
    first = contestant.generate(draw.prompts(batch, prompt_len), [1] * batch)
    whole = contestant.generate(draw.prompts(batch, prompt_len), [steps + 1] * batch)
    return (whole - first) / steps


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table. `measure` None: the figure comes from elsewhere (start, memory)."""

    label: str
    unit: str
    model: str
    measure: Callable[[Contestant, Draw, Sizes], float] | None
    more_is_better: bool = False


ROWS: dict[str, Row] = {
    "start": Row("start to ready", "s", "qwen3-0.6b", None),
    "ttft": Row("time to first token, 512 tokens", "s", "qwen3-0.6b", ttft_512),
    "decode1": Row("decode, batch 1", "tok/s", "qwen3-0.6b", decode_rate(1), True),
    "decode8": Row("decode, batch 8", "tok/s", "qwen3-0.6b", decode_rate(8), True),
    "decode32": Row("decode, batch 32", "tok/s", "qwen3-0.6b", decode_rate(32), True),
    "mixed": Row("mixed requests", "s", "qwen3-0.6b", mixed_requests),
    "shared": Row("requests sharing a prefix", "s", "qwen3-0.6b", shared_prefix),
    "memory": Row("peak memory, all processes", "MiB", "qwen3-0.6b", None),
    "tiny1": Row("tiny Llama, batch 1", "ms/step", "tiny-llama", tiny_step(1)),
    "tiny32": Row("tiny Llama, batch 32", "ms/step", "tiny-llama", tiny_step(32)),
}
