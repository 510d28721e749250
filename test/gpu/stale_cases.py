"""Cases in which something that is no number lies beside what a request may read: behind the end of its last page, where an earlier request
left it, and in the requests of the same step. A weight of 0 does not hide it: 0 times infinity is not 0.
"""

from __future__ import annotations

from typing import Any

import torch
from attention_cases import Case
from gpu_cases import (
    BF16,
    FP16,
    GEMMA,
    GPT_OSS,
    LLAMA,
    MIXED_LENS,
    MLA,
    MLA_TP8,
    PREFIXES,
)

PAGE_SIZES = (1, 16, 64, 128)
# Between others: a kernel that reads on behind the end of a request meets the next one.
POISONED = (1, 4)


def stale_cases(
    lens: tuple[int, ...],
    prefix_lens: tuple[int, ...],
    poisoned: tuple[int, ...],
    page_sizes: tuple[int, ...] = PAGE_SIZES,
    **model: Any,
) -> list[Case]:
    """A decode, prompts without and with a cached prefix, and a mixed step, for every page size."""
    cases = []
    for size in page_sizes:
        options = {"page_size": size, "poisoned": poisoned, **model}
        mixed = (*prefix_lens[:-1], lens[-1] - 1)
        cases += [
            Case(f"stale {size}, decode", lens, **options),
            Case(f"stale {size}, prompts", lens, (0,) * len(lens), **options),
            Case(f"stale {size}, prefixes", lens, prefix_lens, **options),
            Case(f"stale {size}, mixed", lens, mixed, is_mixed=True, **options),
        ]
    return cases


def _variant(name: str, prefix_lens: tuple[int, ...] | None, page: int, **model: Any) -> Case:
    return Case(
        f"stale {page}, {name}",
        MIXED_LENS,
        prefix_lens,
        page_size=page,
        poisoned=POISONED,
        **model,
    )


_WINDOW = {"sliding_window_size": 127}
_WHOLE = (0,) * len(MIXED_LENS)

# On a GPU.
STALE: list[tuple[Case, torch.dtype]] = [
    *[(case, BF16) for case in stale_cases(MIXED_LENS, PREFIXES, POISONED, **LLAMA)],
    (_variant("decode", None, 64, **LLAMA), FP16),
    (_variant("prompts", _WHOLE, 1, **LLAMA), FP16),
    (_variant("decode 256", None, 80, **GEMMA), BF16),
    (_variant("prefixes 256", PREFIXES, 80, **GEMMA), BF16),
    (_variant("prompts 256", _WHOLE, 1, **GEMMA), BF16),
    (_variant("prompts 192/128", _WHOLE, 1, heads=(8, 8), dims=(192, 128)), BF16),
    (_variant("decode window sinks", None, 128, layer=_WINDOW, **GPT_OSS), BF16),
    (_variant("prefixes window sinks", PREFIXES, 128, layer=_WINDOW, **GPT_OSS), BF16),
    (_variant("prompts window sinks", _WHOLE, 128, layer=_WINDOW, **GPT_OSS), BF16),
    (_variant("decode latent", None, 64, **MLA), BF16),
    (_variant("decode latent", None, 128, **MLA), BF16),
    (_variant("decode latent 16", None, 64, **MLA_TP8), BF16),
    (_variant("prompts latent", _WHOLE, 64, **MLA_TP8), BF16),
    (_variant("prefixes latent", PREFIXES, 64, **MLA_TP8), BF16),
    (_variant("decode fp8", None, 64, is_fp8=True, **LLAMA), BF16),
    (_variant("prompts fp8", _WHOLE, 64, is_fp8=True, **LLAMA), BF16),
    (_variant("prefixes fp8", PREFIXES, 64, is_fp8=True, **LLAMA), BF16),
]

STALE_CAPTURED = [
    _variant("captured", None, 64, **LLAMA),
    _variant("captured latent", None, 64, **MLA_TP8),
    _variant("captured fp8", None, 64, is_fp8=True, **LLAMA),
]
