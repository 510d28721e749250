"""Helpers of multimodal models under the path that they import; they live in `sglang.srt.multimodal`."""

from __future__ import annotations

from sglang.srt.multimodal.embedding import embed_mm_inputs, general_mm_embed_routine
from sglang.srt.multimodal.inputs import MultimodalDataItem, MultimodalInputs, hash_feature
from sglang.srt.multimodal.padding import (
    MultiModalityDataPaddingPattern,
    MultiModalityDataPaddingPatternMultimodalTokens,
    MultiModalityDataPaddingPatternTokenPairs,
)

__all__ = [
    "MultiModalityDataPaddingPattern",
    "MultiModalityDataPaddingPatternMultimodalTokens",
    "MultiModalityDataPaddingPatternTokenPairs",
    "MultimodalDataItem",
    "MultimodalInputs",
    "embed_mm_inputs",
    "general_mm_embed_routine",
    "hash_feature",
]
