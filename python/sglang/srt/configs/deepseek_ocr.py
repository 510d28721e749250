"""Config classes under the path that model files import; they live in `configs.vision_language`."""

from __future__ import annotations

from sglang.srt.configs.vision_language import DeepseekVLV2Config

__all__ = ["DeepseekVLV2Config"]
