"""Config classes under the path that model files import; they live in `configs.vision_language`."""

from __future__ import annotations

from sglang.srt.configs.vision_language import (
    KimiK25Config,
    KimiK25VisionConfig,
)

__all__ = ["KimiK25Config", "KimiK25VisionConfig"]
