"""Lines of the tables that the scripts of this folder print."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Ids and their logprobs.
Answer = tuple[list[int], list[float]]


def report(name: str, error: float, bound: float) -> int:
    """Prints an error beside whether it is small enough; 1 if it is not, or is no number."""
    is_right = error <= bound
    print(f"{name:44} {error:10.2e}  {'ok' if is_right else 'FAILED'}", flush=True)
    return int(not is_right)


def report_answers(
    name: str,
    want: Sequence[Answer],
    found: Sequence[Answer],
    bound: float,
    must_be_equal: bool = True,
    more: str = "",
) -> int:
    """Prints how many texts are equal, and the largest error of a logprob up to where texts part; 1 if that is too large, or a text differs that
    must not."""
    same = sum(a[0] == b[0] for a, b in zip(want, found, strict=True))
    worst = max(_error(a, b) for a, b in zip(want, found, strict=True))
    is_right = worst < bound and (same == len(want) or not must_be_equal)
    word = "ok  " if is_right else "FAIL"
    print(
        f"{name:58} {word} equal texts {same}/{len(want)}, logprob error {worst:.2e}{more}",
        flush=True,
    )
    return int(not is_right)


def short(dtype: torch.dtype) -> str:
    """`bfloat16` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def _error(want: Answer, found: Answer) -> float:
    """Of the logprobs of tokens that both chose after the same text, and of the first."""
    pairs = zip(want[0], found[0], strict=True)
    count = next((i for i, (a, b) in enumerate(pairs) if a != b), len(want[0]))
    pieces = want[1][: max(count, 1)], found[1][: max(count, 1)]
    return max(abs(x - y) for x, y in zip(*pieces, strict=True))
