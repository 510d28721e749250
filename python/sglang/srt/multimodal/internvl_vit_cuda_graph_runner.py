"""Captured graphs of InternVL's vision tower. Compatibility: not implemented; towers run eagerly."""

from __future__ import annotations

from sglang.srt.utils.absent import absent_class

InternViTCudaGraphRunner = absent_class(
    "InternViTCudaGraphRunner", "capturing InternVL's vision tower in graphs"
)
