"""Config classes of transformers under the path that model files import."""

from __future__ import annotations

from transformers import Lfm2Config

__all__ = ["Lfm2Config"]
