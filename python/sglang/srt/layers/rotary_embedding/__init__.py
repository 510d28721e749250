"""Rotary position embeddings: `get_rope` chooses the kind, the modules apply it."""

from __future__ import annotations

from typing import Any

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


def __getattr__(name: str) -> Any:
    """`Ernie4_5_VLRotaryEmbedding`, imported when somebody asks for it: no model file of this package does."""
    if name != "Ernie4_5_VLRotaryEmbedding":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sglang.srt.layers.rotary_embedding.ernie_vl import Ernie4_5_VLRotaryEmbedding

    return Ernie4_5_VLRotaryEmbedding
