"""Config classes of transformers under the path that model files import."""

from __future__ import annotations

from transformers import (
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
    Qwen3VLMoeTextConfig,
    Qwen3VLMoeVisionConfig,
    Qwen3VLTextConfig,
    Qwen3VLVisionConfig,
)

__all__ = [
    "Qwen3VLConfig",
    "Qwen3VLMoeConfig",
    "Qwen3VLMoeTextConfig",
    "Qwen3VLMoeVisionConfig",
    "Qwen3VLTextConfig",
    "Qwen3VLVisionConfig",
]
