"""Config classes under the path that model files import; they live in `configs.vision_language`."""

from __future__ import annotations

from sglang.srt.configs.vision_language import (
    DotsVisionConfig,
    DotsVLMConfig,
)

__all__ = ["DotsVisionConfig", "DotsVLMConfig"]
