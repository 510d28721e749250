"""The media values under the path that model files and processors import; they live in `multimodal.inputs`."""

from __future__ import annotations

from sglang.srt.multimodal.inputs import (
    Modality,
    MultimodalDataItem,
    MultimodalInputFormat,
    MultimodalInputs,
)
from sglang.srt.utils import flatten_nested_list

__all__ = [
    "Modality",
    "MultimodalDataItem",
    "MultimodalInputFormat",
    "MultimodalInputs",
    "flatten_nested_list",
]
