"""Config classes of DeepSeek-VL2 and Kimi-VL under the path that model files import."""

from __future__ import annotations

from transformers import DeepseekV2Config

from sglang.srt.configs.vision_language import DeepseekVL2Config, DeepseekVL2MlpProjectorConfig

__all__ = ["DeepseekV2Config", "DeepseekVL2Config", "DeepseekVL2MlpProjectorConfig"]
