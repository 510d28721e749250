"""Captured graphs of a vision tower. Compatibility: not implemented; towers run eagerly."""

from __future__ import annotations

from sglang.srt.utils.absent import absent_class

ViTCudaGraphRunner = absent_class("ViTCudaGraphRunner", "capturing a vision tower in graphs")
