"""Attention of two overlapping half batches. Compatibility: batches are not halved."""

from __future__ import annotations

from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.utils.absent import absent_class

TboAttnBackend = absent_class("TboAttnBackend", "two-batch overlap", AttentionBackend)
