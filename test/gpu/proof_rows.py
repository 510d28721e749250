"""The rows of a kind's proof: which engines run, with which flags."""

from __future__ import annotations

import dataclasses
from typing import Any

from proof_kinds import MEDIA, TEXT, Kind

GRAPHS, NO_GRAPHS, NO_OVERLAP, TOWER = "graphs", "no graphs", "no overlap", "triton tower"
MODES: dict[str, dict[str, Any]] = {
    GRAPHS: {},
    NO_GRAPHS: {"disable_cuda_graph": True},
    NO_OVERLAP: {"disable_overlap_schedule": True, "chunked_prefill_size": 64, "page_size": 16},
    TOWER: {"mm_attention_backend": "triton_attn"},
}
LEGEND = "no overlap: one step at a time, chunks of 64 tokens, pages of 16, graphs on"
F32, BF16 = "float32", "bfloat16"
# Backends that have no kernels for float32.
HALF_ONLY = ("flashinfer", "fa3")


@dataclasses.dataclass(frozen=True)
class Row:
    """One engine: it decodes greedily, and what it says is compared with transformers."""

    backend: str
    dtype: str
    mode: str

    @property
    def name(self) -> str:
        return f"{self.backend:12} {self.dtype:8} {self.mode:12}"

    @property
    def flags(self) -> dict[str, Any]:
        return {"attention_backend": self.backend, "dtype": self.dtype, **MODES[self.mode]}

    @property
    def wants_graphs(self) -> bool:
        return self.mode != NO_GRAPHS and self.backend != "torch_native"


def rows_of(kind: Kind, backends: list[str], dtypes: list[str], device: str) -> list[Row]:
    """Every backend in every dtype that it has, and graphs on and off."""
    return [
        Row(backend, dtype, mode)
        for backend in backends
        for dtype in dtypes
        if not (dtype == F32 and backend in HALF_ONLY)
        for mode in _modes(kind, backend, dtype, device)
    ]


def _modes(kind: Kind, backend: str, dtype: str, device: str) -> list[str]:
    if backend == "torch_native":  # it has no graphs
        return [NO_GRAPHS, NO_OVERLAP] if device == "cpu" else [NO_GRAPHS]
    if kind.task not in (TEXT, MEDIA):  # one step for each request
        return [NO_GRAPHS]
    modes = [GRAPHS, NO_GRAPHS]
    if dtype == F32 or backend in HALF_ONLY:
        modes.append(NO_OVERLAP)
    if kind.task == MEDIA and backend == "triton":
        modes.append(TOWER)
    return modes
