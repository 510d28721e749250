"""The families that are proven with media, by architecture."""

from __future__ import annotations

from sglang.verify.media import MediaFamily
from sglang.verify.media_qwen_vl import QwenVL

FAMILIES: dict[str, MediaFamily] = {
    "Qwen2VLForConditionalGeneration": QwenVL("Qwen2VLProcessor"),
    "Qwen2_5_VLForConditionalGeneration": QwenVL("Qwen2_5_VLProcessor"),
}
