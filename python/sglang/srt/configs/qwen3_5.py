"""Config classes of transformers under the path that model files import."""

from __future__ import annotations

from transformers import (
    Qwen3_5Config,
    Qwen3_5MoeConfig,
    Qwen3_5TextConfig,
)

__all__ = ["Qwen3_5Config", "Qwen3_5MoeConfig", "Qwen3_5TextConfig"]
