"""Tiny models that take media, one per feature that a model file must get right: changes to the stored configurations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MediaCase:
    """`architecture` as `sglang.verify.tiny` knows it; `text` and `vision` change keys of the two parts of its config.json."""

    architecture: str
    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)


_QWEN2_VL = "Qwen2VLForConditionalGeneration"
_QWEN2_5_VL = "Qwen2_5_VLForConditionalGeneration"

VLM_CASES: dict[str, MediaCase] = {
    "qwen2-vl": MediaCase(_QWEN2_VL),
    "qwen2-vl-head-dim": MediaCase(_QWEN2_VL, vision={"embed_dim": 48, "num_heads": 3}),
    "qwen2-5-vl": MediaCase(_QWEN2_5_VL),
    "qwen2-5-vl-windows-only": MediaCase(
        _QWEN2_5_VL, vision={"fullatt_block_indexes": [], "window_size": 112}
    ),
}
