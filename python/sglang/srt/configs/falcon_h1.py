"""Config classes of transformers under the path that model files import."""

from __future__ import annotations

from transformers import FalconH1Config

__all__ = ["FalconH1Config"]
