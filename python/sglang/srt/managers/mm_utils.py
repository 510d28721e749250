"""Helpers of multimodal models under the path that they import; they live in `sglang.srt.multimodal`."""

from __future__ import annotations

from sglang.srt.layers.rotary_embedding.mrope_index import (
    extend_mrope_positions_for_retracted_request,
)
from sglang.srt.multimodal.embedding import embed_mm_inputs, general_mm_embed_routine
from sglang.srt.multimodal.embedding_cache import init_mm_embedding_cache
from sglang.srt.multimodal.inputs import (
    MultimodalDataItem,
    MultimodalInputs,
    hash_feature,
    tensor_hash,
)
from sglang.srt.multimodal.padding import (
    MultiModalityDataPaddingPattern,
    MultiModalityDataPaddingPatternMultimodalTokens,
    MultiModalityDataPaddingPatternTokenPairs,
    get_multimodal_data_bounds,
)

__all__ = [
    "MultiModalityDataPaddingPattern",
    "MultiModalityDataPaddingPatternMultimodalTokens",
    "MultiModalityDataPaddingPatternTokenPairs",
    "MultimodalDataItem",
    "MultimodalInputs",
    "embed_mm_inputs",
    "extend_mrope_positions_for_retracted_request",
    "general_mm_embed_routine",
    "get_multimodal_data_bounds",
    "hash_feature",
    "init_mm_embedding_cache",
    "tensor_hash",
]
