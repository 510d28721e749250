"""Config classes of transformers under the path that model files import."""

from __future__ import annotations

from transformers import Qwen3NextConfig

__all__ = ["Qwen3NextConfig"]
