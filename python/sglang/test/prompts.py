"""The prompts that every correctness tool uses, so that their outputs can be read side by side."""

from __future__ import annotations

# Three short completions of different lengths.
CORRECTNESS_PROMPTS: tuple[str, ...] = (
    "The capital of France is",
    "The capital of the United Kingdom is",
    "Today is a sunny day and I like",
)
# One word some thousand times, the short ones, and a text of some thousand words in which nothing repeats exactly.
DEFAULT_PROMPTS: list[str] = [
    "Apple" * 4000,
    *CORRECTNESS_PROMPTS,
    " ".join(
        f"On day {day} the ship made {day * 37 % 211} miles and the crew of {day * 13 % 89} saw land."
        for day in range(1, 201)
    ),
]
