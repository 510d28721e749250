"""Rotary positions of ERNIE 4.5 VL, in time, height and width. Compatibility: not implemented."""

from __future__ import annotations

from sglang.srt.layers.rotary_embedding.mrope import MRotaryEmbedding
from sglang.srt.utils.absent import absent_class

Ernie4_5_VLRotaryEmbedding = absent_class(
    "Ernie4_5_VLRotaryEmbedding", "the rotary embedding of ERNIE 4.5 VL", MRotaryEmbedding
)
