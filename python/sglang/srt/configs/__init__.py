"""What a checkpoint's config says: typed facts (`hf_config`), the model configuration, name aliases, and config classes
that transformers does not have. The classes are imported on first use, because they bring transformers."""

from __future__ import annotations

import importlib
from typing import Any

# Public name -> module that defines it.
_LAZY_NAMES = {
    "ChatGLMConfig": "sglang.srt.configs.chatglm",
    "DbrxConfig": "transformers",
    "DeepseekVLV2Config": "sglang.srt.configs.vision_language",
    "DotsOCRConfig": "sglang.srt.configs.vision_language",
    "DotsVLMConfig": "sglang.srt.configs.vision_language",
    "FalconH1Config": "transformers",
    "GraniteMoeHybridConfig": "transformers",
    "JetNemotronConfig": "sglang.srt.configs.vision_language",
    "JetVLMConfig": "sglang.srt.configs.vision_language",
    "KimiK25Config": "sglang.srt.configs.vision_language",
    "KimiLinearConfig": "transformers",
    "Lfm2Config": "transformers",
    "Lfm2MoeConfig": "transformers",
    "LongcatFlashConfig": "transformers",
    "MoonViTConfig": "sglang.srt.configs.moonvit",
    "NemotronHConfig": "transformers",
    "Qwen3NextConfig": "transformers",
    "Step3TextConfig": "sglang.srt.configs.step3_vl",
    "Step3VLConfig": "sglang.srt.configs.step3_vl",
    "Step3VisionEncoderConfig": "sglang.srt.configs.step3_vl",
}

__all__ = [*_LAZY_NAMES]


def __getattr__(name: str) -> Any:
    """Import a config class on first access and keep it as a plain module attribute."""
    if name not in _LAZY_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY_NAMES[name]), name)
    globals()[name] = value
    return value
