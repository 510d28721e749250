"""Rotary position embeddings: `get_rope` chooses the kind, the modules apply it."""

from __future__ import annotations

from sglang.srt.layers.rotary_embedding.base import (
    LinearScalingRotaryEmbedding,
    RotaryEmbedding,
    apply_rotary_pos_emb,
    rotate_half,
)
from sglang.srt.layers.rotary_embedding.factory import get_rope, get_rope_wrapper
from sglang.srt.layers.rotary_embedding.frequencies import yarn_get_mscale
from sglang.srt.layers.rotary_embedding.mrope import MRotaryEmbedding
from sglang.srt.layers.rotary_embedding.switched import SwitchedRotaryEmbedding

__all__ = [
    "LinearScalingRotaryEmbedding",
    "MRotaryEmbedding",
    "RotaryEmbedding",
    "SwitchedRotaryEmbedding",
    "apply_rotary_pos_emb",
    "get_rope",
    "get_rope_wrapper",
    "rotate_half",
    "yarn_get_mscale",
]
