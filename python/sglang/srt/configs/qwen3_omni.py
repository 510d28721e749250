"""Config classes of transformers under the path that model files import."""

from __future__ import annotations

from transformers import (
    Qwen3OmniMoeAudioEncoderConfig,
    Qwen3OmniMoeThinkerConfig,
    Qwen3OmniMoeVisionEncoderConfig,
)

__all__ = [
    "Qwen3OmniMoeAudioEncoderConfig",
    "Qwen3OmniMoeThinkerConfig",
    "Qwen3OmniMoeVisionEncoderConfig",
]
