"""Config classes of transformers under the path that model files import."""

from __future__ import annotations

from transformers import GraniteMoeHybridConfig

__all__ = ["GraniteMoeHybridConfig"]
