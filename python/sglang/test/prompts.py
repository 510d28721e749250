"""The prompts that every correctness tool uses, so that their outputs can be read side by side."""

from __future__ import annotations

# Three short completions of different lengths.
CORRECTNESS_PROMPTS: tuple[str, ...] = (
    "The capital of France is",
    "The capital of the United Kingdom is",
    "Today is a sunny day and I like",
)
